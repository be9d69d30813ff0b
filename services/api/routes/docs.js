"use strict";

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

let api;

const resolve = (schema) => {
  const name = schema?.$ref?.replace("#/components/schemas/", "");
  return name ? api.components.schemas[name] ?? {} : schema ?? {};
};

// An example of what a schema takes; deep enough to read, never endless.
const example = (schema, depth = 0) => {
  const it = resolve(schema);
  if (it.default !== undefined) return it.default;
  if (it.enum) return it.enum[0];
  const choice = (it.oneOf ?? it.anyOf ?? []).find((one) => one.type !== "null");
  if (choice) return example(choice, depth + 1);
  if (it.type === "object" || it.properties) {
    if (depth > 4) return {};
    return Object.fromEntries(Object.entries(it.properties ?? {}).map(([key, value]) => [key, example(value, depth + 1)]));
  }
  if (it.type === "array") return depth > 4 ? [] : [example(it.items ?? {}, depth + 1)];
  return { string: it.format ?? "", integer: 0, number: 0, boolean: true }[it.type] ?? null;
};

const kind = (schema) => {
  const it = resolve(schema);
  return [it.type ?? "any", it.format, it.enum?.join(" | ")].filter(Boolean).join(" ");
};

const json = (value) => JSON.stringify(value, null, 2);

function operation(path, method, it) {
  const inputs = new Map();
  const rows = (it.parameters ?? []).map((parameter) => {
    const input = make("input", { "aria-label": parameter.name });
    inputs.set(parameter, input);
    return make("tr", {}, make("td", {}, make("code", {}, parameter.name), parameter.required ? " *" : ""),
      make("td", {}, kind(parameter.schema)), make("td", {}, parameter.description ?? ""), make("td", {}, input));
  });
  const media = it.requestBody?.content?.["application/json"];
  const body = media && make("textarea", { "aria-label": "Body", spellcheck: "false" });
  if (body) body.value = json(example(media.schema));
  const result = make("pre", { hidden: "" });
  const send = async () => {
    let target = path;
    const query = new URLSearchParams();
    for (const [parameter, input] of inputs) {
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (parameter.in === "query" && input.value) query.append(parameter.name, input.value);
    }
    const headers = {};
    const key = document.getElementById("key").value;
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    const answer = await fetch(query.size ? `${target}?${query}` : target, {
      method: method.toUpperCase(), headers, body: body?.value, credentials: "omit",
    });
    const text = await answer.text();
    let shown = text;
    try { shown = json(JSON.parse(text)); } catch { /* not JSON: as it is */ }
    result.hidden = false;
    result.textContent = `${answer.status} ${answer.statusText}\n${shown}`;
  };
  const answers = Object.entries(it.responses ?? {}).map(([status, answer]) => {
    const schema = answer.content?.["application/json"]?.schema;
    return make("li", {}, make("code", {}, status), ` ${answer.description ?? ""}`,
      ...(schema ? [make("pre", {}, json(example(schema)))] : []));
  });
  return make("details", { "data-text": `${method} ${path} ${it.summary ?? ""} ${it.description ?? ""}`.toLowerCase() },
    make("summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("code", {}, path),
      make("span", {}, it.description?.split("\n")[0] ?? it.summary ?? ""), make("span", { class: "caller" }, it["x-caller"] ?? "")),
    make("div", {}, make("p", {}, it.description ?? it.summary ?? ""),
      ...(rows.length ? [make("table", {}, ...rows)] : []), ...(body ? [body] : []),
      make("p", {}, make("button", { type: "button", onclick: () => send().catch((error) => {
        result.hidden = false;
        result.textContent = String(error);
      }) }, "Send")),
      result, make("ul", {}, ...answers)));
}

function show() {
  const groups = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of ["get", "post", "put", "patch", "delete"]) {
      if (!item[method]) continue;
      const tag = item[method].tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(path, method, item[method]));
    }
  }
  document.getElementById("operations").replaceChildren(
    ...[...groups].map(([tag, operations]) => make("section", {}, make("h2", {}, tag), ...operations)));
}

document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const element of document.querySelectorAll("details")) element.hidden = !element.dataset.text.includes(wanted);
});

fetch("/docs/openapi.json")
  .then((answer) => answer.json())
  .then((document_) => { api = document_; show(); })
  .catch((error) => { document.getElementById("operations").textContent = `The document cannot be read: ${error}`; });
