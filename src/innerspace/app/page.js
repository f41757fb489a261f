// What the page does by itself: the address follows what is shown, pictures are saved, a lost server is told.
const workbench = (() => {
  "use strict";

  // as it came: the first tab is remembered before anyone has asked what the address holds
  const opened = window.location.search;

  // Puts a tab's part of the state into the address in place of what was there; "tab" is the open tab itself.
  function remember(owner, query) {
    const now = [...new URLSearchParams(window.location.search)];
    const kept = now.filter(([key]) => owner === "tab" ? key !== "tab" : !key.startsWith(`${owner}.`));
    const given = [...new URLSearchParams(query)];
    const written = (owner === "tab" ? [...given, ...kept] : [...kept, ...given])
      .map(([key, value]) => `${key}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":")}`);
    window.history.replaceState(null, "", written.length ? `?${written.join("&")}` : window.location.pathname);
  }

  // A drawing carries its part of the address; each is remembered once, when it appears.
  function follow() {
    document.querySelectorAll("i[data-address]:not([data-seen])").forEach((mark) => {
      mark.dataset.seen = "";
      remember(mark.dataset.tab, mark.dataset.address);
    });
  }

  // A drawing as a file of pixels: the browser draws the SVG that the server gives.
  async function png(address, name, scale = 2) {
    const text = await (await fetch(address)).text();
    const image = new Image();
    const source = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    await new Promise((done, failed) => { image.onload = done; image.onerror = failed; image.src = source; });
    const canvas = document.createElement("canvas");
    canvas.width = scale * image.width;
    canvas.height = scale * image.height;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(source);
    const link = document.createElement("a");
    link.href = canvas.toDataURL("image/png");
    link.download = name;
    link.click();
  }

  function lost(gone) {
    let note = document.getElementById("lost");
    if (!gone) { if (note) note.remove(); return; }
    if (note) return;
    note = document.createElement("p");
    note.id = "lost";
    note.className = "message error";
    note.setAttribute("role", "alert");
    note.textContent = "The server does not answer. Start it again with innerspace serve, then reload this page: "
      + "the address holds what is shown.";
    document.body.prepend(note);
  }

  const ask = window.fetch.bind(window);
  window.fetch = async (...given) => {
    try {
      const answer = await ask(...given);
      lost(false);
      return answer;
    } catch (error) {
      // a request that the page itself gave up says nothing of the server
      if (error.name !== "AbortError") lost(true);
      throw error;
    }
  };

  // What a mark says when it is pointed at.
  function tell(event) {
    const mark = event.target.closest("[data-tip]"), old = document.getElementById("tip");
    if (old) old.remove();
    if (!mark) return;
    const tip = document.createElement("p"), box = mark.getBoundingClientRect();
    tip.id = "tip";
    tip.textContent = mark.dataset.tip;
    document.body.append(tip);
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.top - tip.offsetHeight - 8 > 0 ? box.top - tip.offsetHeight - 8 : box.bottom + 8}px`;
  }

  document.addEventListener("pointerover", tell);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-png]");
    if (button) png(button.dataset.png, button.dataset.name);
  });
  new MutationObserver(follow).observe(document, { childList: true, subtree: true, attributeFilter: ["data-address"] });
  return { opened, remember };
})();
