// Moves of sliders: the newest positions go to the server as soon as the answer before is there (moves.py). One that was
// lost is sent again; until all are answered, page.js does not ask for the whole picture.
(() => {
  const SLIDERS = ".knob input, #across input, #down input";
  let waiting = {}; // what has moved since the last request, by the slider's name
  let since = 0; // when the oldest of it moved
  let turn = null; // of the sliders that have moved
  let busy = false;
  let lost = 0; // requests in a row without an answer
  const MOST_LOST = 3;
  const PATIENCE = 10000; // milliseconds
  let urls = []; // of the window's two pictures
  const path = new URL("moves", location.href.replace(/[?#].*/, "").replace(/\/?$/, "/"));

  const follow = (values) => {
    for (const [name, value] of Object.entries(values)) {
      for (const input of document.querySelectorAll(`#${name} input`)) {
        input.value = value;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      }
    }
  };

  // Where nothing is painted, as in a tab behind others, decoding may never end.
  const decoded = (image) => Promise.race([image.decode(), new Promise((done) => setTimeout(done, 1000))]);

  const draw = async (box, said, files) => {
    const images = box.querySelectorAll("img");
    const old = urls;
    urls = files.map((file, place) => (file.size ? URL.createObjectURL(file) : old[place]));
    await Promise.all(files.map(async (file, place) => {
      if (!file.size) return;
      const image = new Image();
      image.src = urls[place];
      await decoded(image);
      images[place].src = urls[place];
      await decoded(images[place]);
    }));
    old.forEach((url, place) => url && url !== urls[place] && URL.revokeObjectURL(url));
    box.dataset.tag = said.tag;
    box.parentNode.querySelector(".note").textContent = said.note;
  };

  window.movesRest = () => !busy && !Object.keys(waiting).length;

  const turn_now = () => Number(document.querySelector("#turn :is(textarea, input)")?.value ?? 0);

  const tell = (problem) => {
    const place = document.querySelector("#status p");
    if (!place) return;
    place.className = "problem";
    place.setAttribute("role", "alert");
    place.textContent = `${problem[0].toUpperCase()}${problem.slice(1)}.`;
  };

  const send = async () => {
    const key = document.querySelector("[data-key]")?.dataset.key;
    if (busy || !key || !Object.keys(waiting).length) return;
    const [moves, of, input, sent] = [waiting, turn, since, performance.now()];
    const box = document.querySelector("#window .window");
    waiting = {};
    busy = true;
    let answered = false;
    try {
      const body = JSON.stringify({ key, moves, tag: box?.dataset.tag ?? "", turn: of });
      const headers = { "Content-Type": "application/json" };
      const response = await fetch(path, { method: "POST", headers, body, signal: AbortSignal.timeout(PATIENCE) });
      if (!response.ok) {
        answered = true;
        const { problem } = await response.json().catch(() => ({}));
        if (response.status === 404) tell("the page is not open here any more: reload it");
        else if (response.status !== 409) tell(problem ?? `the window did not follow (${response.status}): reload the page`);
        return;
      }
      const content = await response.arrayBuffer();
      answered = true;
      const received = performance.now();
      const start = 4 + new DataView(content).getUint32(0);
      const said = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 4, start - 4)));
      lost = 0;
      if (of === turn_now()) follow(said.values);
      if (said.problem) tell(said.problem);
      if (!said.sizes[1] || !box?.isConnected) return; // nothing to show, or Gradio has drawn another window
      const middle = start + said.sizes[0];
      await draw(box, said, [[start, middle], [middle]].map((ends) =>
        new Blob([content.slice(...ends)], { type: "image/jpeg" })));
      const detail = { input, sent, received, shown: performance.now(), ...said.ms };
      document.dispatchEvent(new CustomEvent("window-shown", { detail })); // for those who measure
    } catch (error) {
      console.warn("the window did not follow:", error);
      if (answered) return;
      lost += 1;
      if (lost >= MOST_LOST) tell("the app does not answer: start it again, and reload the page");
      else if (of === turn_now()) {
        if (turn === of || !Object.keys(waiting).length) [waiting, turn] = [{ ...moves, ...waiting }, of];
        await new Promise((done) => setTimeout(done, 300));
      }
    } finally {
      busy = false;
      send();
    }
  };

  const note = (input, at) => {
    if (input.value === "") return;
    if (turn !== turn_now()) waiting = {}; // of sliders that are gone
    turn = turn_now();
    if (!Object.keys(waiting).length) since = at;
    waiting[input.closest(".knob, #across, #down").id] = Number(input.value);
    send();
  };

  // Events that `follow` makes are not trusted: they are no moves.
  document.addEventListener("input", (event) => {
    if (event.isTrusted && event.target.matches?.(SLIDERS)) note(event.target, event.timeStamp);
  }, true);

  // Gradio's button that puts a slider back makes no event of the slider.
  document.addEventListener("click", (event) => {
    const input = event.target.closest?.("button")?.closest(".knob, #across, #down")?.querySelector("input[type=range]");
    if (input) setTimeout(() => {
      note(input, event.timeStamp);
      input.dispatchEvent(new Event("change", { bubbles: true }));
    });
  });
})();
