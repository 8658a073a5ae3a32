// Per-pixel operations for maps of alpha. If there are few outputs, they form one partial vector.
namespace tunable_ops::TO_ISA {

// The offset of pixel `i` of the batch in alpha or the dots.
inline int64_t map_offset(const Map& map, int64_t i) { return i / map.pixels * map.step + i % map.pixels; }

void scale_pixels(const ScalePixels& args, int64_t begin, int64_t end) {
  const int64_t outputs = args.map.outputs;
  for (int64_t i = begin; i < end; ++i) {
    const float* source = args.source + i * args.source_step;
    float* target = args.target + i * args.target_step;
    const float* sums = args.add ? target : nullptr;
    const Vec factor = broadcast(args.alpha[map_offset(args.map, i)]);
    int64_t o = 0;
    for (; o + kLanes <= outputs; o += kLanes) {
      const Vec value = factor * load(source + o);
      store(target + o, activate(sums ? load(sums + o) + value : value, args.activation));
    }
    if (o < outputs) {
      const int64_t count = outputs - o;
      const Vec value = factor * load_first(source + o, count);
      store_first(target + o, activate(sums ? load_first(sums + o, count) + value : value, args.activation), count);
    }
  }
}

void pixel_dots(const PixelDots& args, int64_t begin, int64_t end) {
  const int64_t outputs = args.map.outputs;
  for (int64_t i = begin; i < end; ++i)
    args.dots[map_offset(args.map, i)] = dot(args.a + i * args.a_step, args.b + i * args.b_step, outputs);
}

}  // namespace tunable_ops::TO_ISA
