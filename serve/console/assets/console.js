// Keys press what they are written on: an element with data-key (or data-go, behind g) is clicked, or entered where it takes text.
// Everything is there without this file, too.
"use strict";
(() => {
  const TEXT = "textarea, select, input:not([type=radio]):not([type=checkbox]):not([type=submit])";
  let behindG = -Infinity;
  let busy = false;

  const takesText = (element) => element instanceof Element && element.matches(TEXT);

  const named = (attribute, key) => {
    const found = document.querySelectorAll(`[${attribute}="${CSS.escape(key)}"]`);
    return [...found].find((element) => !element.disabled);
  };

  const press = (element) => {
    const details = element.closest("details");
    if (details && !element.matches("summary")) details.open = true;
    if (takesText(element)) {
      element.focus();
      element.select?.();
      return;
    }
    // From there on the arrows choose.
    if (element.matches("[type=radio]")) element.focus();
    element.click();
  };

  const showKeys = () => {
    const dialog = document.getElementById("keys");
    const list = dialog.querySelector("dl");
    const row = (key, said) => {
      const [term, description] = [document.createElement("dt"), document.createElement("dd")];
      const shown = document.createElement("kbd");
      shown.textContent = key;
      term.append(shown);
      description.textContent = said;
      return [term, description];
    };
    const rows = [...document.querySelectorAll("[data-key], [data-go]")].flatMap((element) => {
      const key = element.dataset.key ?? `g ${element.dataset.go}`;
      return row(key, element.dataset.says ?? element.textContent.trim());
    });
    rows.push(...row("Ctrl Enter", "send the form whose text is being written"), ...row("Esc", "leave a text"));
    list.replaceChildren(...rows);
    dialog.showModal();
  };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const form = target instanceof Element && target.closest("form");
      const button = form && form.querySelector("[data-submit]");
      event.preventDefault();
      if (button && !busy) {
        // A click, so that what the button is called is sent along.
        button.click();
      }
      return;
    }
    const isMark = target instanceof HTMLInputElement && target.type === "radio";
    if (isMark && event.key === "Enter") {
      event.preventDefault();
      return;
    }
    if (isMark && /^[1-5]$/.test(event.key)) {
      // A mark is chosen by its digit, which would rate the answer elsewhere.
      const mark = target.form?.querySelector(`[name="${CSS.escape(target.name)}"][value="${event.key}"]`);
      event.preventDefault();
      mark?.focus();
      mark?.click();
      return;
    }
    if (event.key === "Escape" && takesText(target)) {
      target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || takesText(target)) return;
    if (document.querySelector("dialog[open]")) return;
    const isBehind = event.timeStamp - behindG < 1500;
    behindG = -Infinity;
    if (event.key === "?") {
      event.preventDefault();
      showKeys();
      return;
    }
    const element = isBehind ? named("data-go", event.key) : named("data-key", event.key);
    if (element) {
      event.preventDefault();
      // A key that comes before the next page would say of this one what is meant for that.
      if (!busy) press(element);
    } else if (event.key === "g") {
      behindG = event.timeStamp;
    }
  });

  // What a form sends goes out once.
  document.addEventListener("htmx:beforeRequest", (event) => {
    busy ||= Boolean(event.detail.boosted);
  });
  for (const name of ["htmx:afterSettle", "htmx:sendError", "htmx:sendAbort", "htmx:timeout"]) {
    document.addEventListener(name, (event) => {
      if (event.detail.boosted ?? true) busy = false;
    });
  }

  // Readers of screens hear the new page's heading.
  document.addEventListener("htmx:afterSettle", (event) => {
    if (!event.detail.boosted) return;
    const first = document.querySelector("[autofocus]") ?? document.getElementById("main");
    first?.focus({ preventScroll: true });
  });

  const tell = (text) => {
    let said = document.getElementById("trouble");
    if (!said) {
      said = document.createElement("p");
      said.id = "trouble";
      said.className = "notice bad";
      said.setAttribute("role", "alert");
      document.getElementById("main").prepend(said);
    }
    said.textContent = text;
  };

  // What is shown stays where the answer is no page of the console's, where a form was not taken, and where somebody is at work in a part
  // that comes anew by itself.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { boosted, xhr, requestConfig } = event.detail;
    const answer = new DOMParser().parseFromString(xhr.responseText, "text/html");
    const failure = answer.querySelector("[data-failure] [role=alert]");
    if (!boosted) {
      const live = document.getElementById("live");
      const isInUse = live?.contains(document.activeElement) || live?.querySelector("details[open]");
      if (!answer.getElementById("live")) tell(failure?.textContent ?? `The server said ${xhr.status}; what is shown is of earlier.`);
      else if (!isInUse) {
        document.getElementById("trouble")?.remove();
        return;
      }
      event.detail.shouldSwap = false;
      return;
    }
    if (!answer.getElementById("page") || (failure && requestConfig.verb !== "get")) {
      event.detail.shouldSwap = false;
      busy = false;
      tell(failure?.textContent ?? `The server said ${xhr.status}. Try again.`);
    }
  });

  document.addEventListener("htmx:sendError", (event) => {
    const isForm = event.detail.requestConfig?.verb !== "get";
    tell(isForm ? "The server did not answer: look whether it was kept before you send it again." : "The server does not answer.");
  });
})();
