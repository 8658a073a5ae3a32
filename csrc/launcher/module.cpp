// tunable_ops._launcher: what Python hands over to be done without it.
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>

#include "operators.h"
#include "plan.h"

#define TO_TEXT_(a) #a
#define TO_TEXT(a) TO_TEXT_(a)

namespace tunable_ops::launcher {
namespace {

std::optional<Place> place_of(const py::handle& place) {
  if (place.is_none()) return std::nullopt;
  const auto [slot, size, stride, offset] = py::cast<std::tuple<size_t, std::optional<Ints>, Ints, int64_t>>(place);
  if (!size) return Place{slot, std::nullopt};
  return Place{slot, Place::View{*size, stride, offset}};
}

c10::OperatorHandle find(const std::string& name, const std::string& overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
}

std::vector<c10::IValue> values_of(const c10::FunctionSchema& schema, const py::tuple& arguments) {
  TORCH_CHECK(arguments.size() == schema.arguments().size(), schema.name(), " takes all of its arguments here");
  std::vector<c10::IValue> values;
  for (size_t i = 0; i < arguments.size(); ++i)
    values.push_back(torch::jit::toIValue(arguments[i], schema.arguments()[i].type()));
  return values;
}

// Takes the steps of a plan one by one. Made before its call runs: the plan is that of the settings and the generation
// of that moment.
class Recording {
 public:
  Recording(const std::string& op, const py::tuple& arguments)
      : generation_(generation()),
        number_(number_of(op)),
        values_(values_of(find("tunable_ops::" + op, "").schema(), arguments)),
        key_(key_of(number_, values_)) {
    plan_.device = values_[0].toTensor().device();
  }

  void allocate(Ints size, Ints stride, at::ScalarType type, at::Device device) {
    plan_.steps.push_back(Allocation{std::move(size), std::move(stride), type, device});
  }

  // The arguments are pairs of a value and a place or a list of places, of which one is None.
  void call(const std::string& name, const std::string& overload, const py::tuple& arguments, const py::dict& named,
            std::vector<std::pair<size_t, Ints>> kept) {
    Call step{find(name, overload), {}, std::move(kept)};
    const auto& formal = step.op.schema().arguments();
    for (size_t i = 0; i < formal.size(); ++i) {
      const char* argument = formal[i].name().c_str();
      if (i >= arguments.size() && !named.contains(argument)) {
        TORCH_CHECK(formal[i].default_value(), name, ": no ", argument);
        step.arguments.push_back({*formal[i].default_value(), {}});
        continue;
      }
      const py::tuple pair(i < arguments.size() ? py::object(arguments[i]) : py::object(named[argument]));
      if (pair[1].is_none()) {
        step.arguments.push_back({torch::jit::toIValue(pair[0], formal[i].type()), {}});
      } else if (py::isinstance<py::list>(pair[1])) {
        Call::Argument list{c10::IValue(), {}, true};
        for (const auto& place : py::list(pair[1])) list.places.push_back(*place_of(place));
        step.arguments.push_back(std::move(list));
      } else {
        step.arguments.push_back({c10::IValue(), {*place_of(pair[1])}});
      }
    }
    plan_.steps.push_back(std::move(step));
  }

  void launch(uint64_t function, std::array<unsigned, 3> grid, unsigned threads, unsigned shared,
              std::vector<uint64_t> parameters, const std::vector<std::tuple<size_t, size_t, int64_t>>& addresses) {
    Launch step{reinterpret_cast<void*>(function), grid, threads, shared, std::move(parameters), {}};
    for (const auto& [parameter, slot, offset] : addresses) step.addresses.push_back({parameter, slot, offset});
    plan_.steps.push_back(std::move(step));
  }

  void release(std::vector<size_t> slots) { plan_.steps.push_back(Release{std::move(slots)}); }

  // Returns false for a call that no plan may serve: a setting changed while it ran, or the plans were forgotten.
  bool keep(const py::tuple& results) {
    for (const auto& result : results) plan_.results.push_back(place_of(result));
    if (!key_ || key_of(number_, values_) != key_) return false;
    return keep_plan(*key_, std::move(plan_), generation_);
  }

 private:
  uint64_t generation_;
  int64_t number_;
  std::vector<c10::IValue> values_;
  std::optional<Ints> key_;
  Plan plan_{at::kCPU, {}, {}};
};

// The lists of the hooks that Triton calls around a launch, as a call in Python last found them. Their lengths are read
// without the interpreter's lock: a hook that another thread is adding at this moment may miss a launch, as it may
// anyway.
std::atomic<PyObject*> hooks[2];

bool has_hooks() {
  for (const auto& watched : hooks)
    if (PyObject* list = watched;
        list != nullptr && *const_cast<volatile Py_ssize_t*>(&reinterpret_cast<PyVarObject*>(list)->ob_size) > 0)
      return true;
  return false;
}

void watch_hooks(const py::list& enter, const py::list& leave) {
  for (int i = 0; i < 2; ++i) {
    PyObject* list = (i == 0 ? enter : leave).ptr();
    if (list == hooks[i]) continue;
    Py_INCREF(list);  // never released: a launch may be reading it
    hooks[i] = list;
  }
  set_listening(&has_hooks);
}

}  // namespace

PYBIND11_MODULE(_launcher, m) {
  m.doc() = "Launches of recorded plans.";
  m.attr("torch") = TO_TEXT(TO_TORCH_VERSION);
  m.def("forget", &forget_plans);
  m.def("finds_stream", &finds_stream);
  m.def("watch_hooks", &watch_hooks);
  m.def("counts", [] { return std::pair(counts().planned, counts().unplanned); });
  py::class_<Recording>(m, "Recording")
      .def(py::init<const std::string&, const py::tuple&>())
      .def("allocate", &Recording::allocate)
      .def("call", &Recording::call)
      .def("launch", &Recording::launch)
      .def("release", &Recording::release)
      .def("keep", &Recording::keep);
  py::class_<Operators>(m, "Operators")
      .def(py::init<const std::string&>())
      .def("add_convolution", &Operators::add_convolution)
      .def("add_blend", &Operators::add_blend);
}

}  // namespace tunable_ops::launcher
