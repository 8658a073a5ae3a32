// What Gradio's parts do not do: tell when a slider rests, paint a mask, and enlarge the pictures of a strip.
(() => {
  const timers = {};
  const soon = (button) => {
    clearTimeout(timers[button]);
    timers[button] = setTimeout(() => press(button), 250);
  };
  // A move that is on its way comes first (moves.js): after it the sliders would be where they were before.
  const press = (button) => {
    if (button === "#settle" && !window.movesRest()) timers[button] = setTimeout(() => press(button), 20);
    else document.querySelector(button)?.click();
  };

  // A slider that is let go, or moved by a key, ends with the event `change`: the whole picture follows.
  document.addEventListener("change", (event) => {
    if (event.target.closest?.(".knob")) soon("#settle");
  }, true);

  let last = null; // where the stroke is
  const brush = () => Number(document.querySelector("#brush input[type=range]")?.value ?? 40);
  const stroke = (canvas, from, to) => {
    const pen = canvas.getContext("2d");
    pen.globalCompositeOperation = document.querySelector("#erase input")?.checked ? "destination-out" : "source-over";
    pen.strokeStyle = "#ff2d87";
    pen.lineCap = "round";
    pen.lineWidth = brush();
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
  };
  const place = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) * canvas.width / box.width,
      y: (event.clientY - box.top) * canvas.height / box.height,
    };
  };
  document.addEventListener("pointerdown", (event) => {
    if (event.target.id !== "painter" || event.button) return;
    event.target.setPointerCapture(event.pointerId);
    last = place(event.target, event);
    stroke(event.target, last, last);
  });
  document.addEventListener("pointermove", (event) => {
    if (event.target.id !== "painter" || !last) return;
    const next = place(event.target, event);
    stroke(event.target, last, next);
    last = next;
  });
  for (const end of ["pointerup", "pointercancel"])
    document.addEventListener(end, (event) => {
      if (event.target.id !== "painter" || !last) return;
      last = null;
      soon("#painted");
    });

  // At once, not when the server's picture comes: a stroke of a moment ago is not taken after all.
  document.addEventListener("click", (event) => {
    const canvas = event.target.closest?.("#nomask") && document.querySelector("#painter");
    canvas?.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }, true);

  // A mask that came from a file is drawn where strokes are, so that they go on from it.
  const draw_mask = (canvas) => {
    const mask = new Image();
    mask.onload = () => canvas.getContext("2d").drawImage(mask, 0, 0, canvas.width, canvas.height);
    mask.src = canvas.dataset.mask;
    delete canvas.dataset.mask;
  };

  // By the keyboard: arrows move a ring, the space bar paints where it is.
  let ring = null;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    const canvas = event.target;
    if (canvas.id !== "painter" || !(event.key in steps || event.key === " ")) return;
    event.preventDefault();
    ring ??= { x: canvas.width / 2, y: canvas.height / 2 };
    const [x, y] = steps[event.key] ?? [0, 0];
    ring = {
      x: Math.min(Math.max(ring.x + x * brush() / 2, 0), canvas.width),
      y: Math.min(Math.max(ring.y + y * brush() / 2, 0), canvas.height),
    };
    canvas.style.background = `radial-gradient(circle at ${100 * ring.x / canvas.width}% ${100 * ring.y / canvas.height}%,`
      + " #fff 0 4px, #000 4px 6px, transparent 6px)";
    if (event.key === " ") {
      stroke(canvas, ring, ring);
      soon("#painted");
    }
  });

  // Pictures of a strip, one at a time: a dialog that Escape closes and the arrow keys leaf through.
  let figure = 0;
  const enlarge = (at) => {
    const figures = [...document.querySelectorAll("#strip figure")];
    figure = (at + figures.length) % figures.length;
    let dialog = document.querySelector("#enlarged");
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.id = "enlarged";
      dialog.setAttribute("aria-labelledby", "enlarged-label");
      dialog.innerHTML = '<img><div><button type="button">Back</button><span id="enlarged-label" aria-live="polite">'
        + '</span><button type="button">Next</button><button type="button" autofocus>Close</button></div>';
      const [back, next, close] = dialog.querySelectorAll("button");
      back.onclick = () => enlarge(figure - 1);
      next.onclick = () => enlarge(figure + 1);
      close.onclick = () => dialog.close();
      dialog.onclick = (event) => event.target === dialog && dialog.close();
      dialog.onkeydown = (event) => {
        if (event.key === "Escape") dialog.close(); // Gradio keeps the browser from it
        if (event.key in steps) enlarge(figure + steps[event.key][0]);
      };
      dialog.onclose = () => document.querySelectorAll("#strip button")[figure]?.focus();
      document.body.append(dialog);
    }
    const [image, label] = [dialog.querySelector("img"), dialog.querySelector("span")];
    image.src = figures[figure].querySelector("img").src;
    image.alt = label.textContent = figures[figure].querySelector("figcaption").textContent;
    if (!dialog.open) dialog.showModal();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#strip figure button");
    if (button) enlarge([...document.querySelectorAll("#strip figure button")].indexOf(button));
  });

  // What is wrong comes into view: on a phone the status is far below what caused it.
  let said = null;
  const show_problem = () => {
    const problem = document.querySelector("#status .problem");
    if (problem?.textContent !== said) problem?.scrollIntoView({ block: "nearest" });
    said = problem?.textContent ?? null;
  };

  // Names for screen readers where Gradio gives none.
  new MutationObserver(() => {
    document.querySelector("#status:not([aria-live])")?.setAttribute("aria-live", "polite");
    document.querySelectorAll("#whole img[alt='']").forEach((img, place) => {
      img.alt = place ? "Whole picture after" : "Whole picture before";
    });
    document.querySelectorAll("#painter[data-mask]").forEach(draw_mask);
    show_problem();
    const command = document.querySelector("#command textarea:not([aria-label])");
    command?.setAttribute("aria-label", "Repeat it from the command line");
  }).observe(document, { childList: true, subtree: true });
})();
