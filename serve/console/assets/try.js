// Answers as they come, side by side. Without this file the form gives them whole.
"use strict";
(() => {
  // The text that an event stream's lines add, whatever pieces they come in.
  async function* deltas(body) {
    const decoder = new TextDecoder();
    const reader = body.getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith(": retune-format ")) yield { format: line.slice(16).trim() };
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const said = JSON.parse(line.slice(6));
        if (said.error) throw new Error(said.error.message);
        yield { text: said.choices?.[0]?.delta?.content ?? "" };
      }
      if (done) return;
    }
  }

  const ask = async (form, answer, signal) => {
    const text = answer.querySelector("pre");
    const said = answer.querySelector(".said");
    text.textContent = "";
    said.textContent = "…";
    const began = performance.now();
    let first = null;
    try {
      const data = new URLSearchParams(new FormData(form));
      data.set("model", answer.dataset.model);
      const response = await fetch("/console/try/answer", { method: "POST", body: data, signal, redirect: "manual" });
      // Whoever is signed in no longer is sent to where one signs in.
      if (response.type === "opaqueredirect") {
        location.assign("/console/sign-in?to=%2Fconsole%2Ftry");
        return;
      }
      if (!response.ok) {
        const refused = await response.json().catch(() => null);
        throw new Error(refused?.error?.message ?? `The server said ${response.status}.`);
      }
      const by = response.headers.get("retune-adapter") ?? "";
      let format = "";
      for await (const event of deltas(response.body)) {
        if (event.format) format = event.format;
        if (event.text) {
          first ??= performance.now() - began;
          text.append(event.text);
        }
      }
      const all = performance.now() - began;
      const begun = first === null ? "" : `first words after ${Math.round(first)} ms, `;
      said.textContent = `${by}: ${begun}all after ${Math.round(all)} ms; format ${format || "none"}`;
    } catch (error) {
      if (error.name !== "AbortError") said.textContent = error.message;
    }
  };

  let running = new AbortController();
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!(form instanceof HTMLFormElement) || form.id !== "try") return;
    event.preventDefault();
    event.stopPropagation();
    running.abort();
    running = new AbortController();
    for (const answer of document.querySelectorAll("[data-model]")) ask(form, answer, running.signal);
  }, true);
})();
