"""The page behind `/docs`: one file, nothing loaded from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PageMill API</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
         margin: 2rem auto; padding: 0 1rem; }
  @media (prefers-color-scheme: dark) { body { background: #16181c; color: #e4e6ea; } }
  h1 { font-size: 1.4rem; }
  details { border-top: 1px solid #8885; padding: .5rem 0; }
  summary { cursor: pointer; }
  code, pre { font: 13px/1.5 ui-monospace, monospace; }
  .method { display: inline-block; width: 3.5rem; font-weight: 600; }
  .note { opacity: .7; }
  table { border-collapse: collapse; margin: .5rem 0; }
  td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
  input { font: inherit; }
</style>
<h1>PageMill API</h1>
<p>The document for tools is <a href="openapi.json">openapi.json</a>.
<span id="ask" hidden>API key: <input id="key" type="password" autocomplete="off"></span></p>
<main id="list">Loading…</main>
<script>
"use strict";
const list = document.getElementById("list");
function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" | ");
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  if (schema.type === "array") return "list of " + (schema.items ? kind(schema.items) : "any");
  return schema.type || "any";
}
function fields(doc, schema, parent) {
  const name = schema.$ref && schema.$ref.split("/").pop();
  const found = name && doc.components.schemas[name];
  if (!found || !found.properties) return;
  const table = element("table", "", parent);
  for (const [field, type] of Object.entries(found.properties)) {
    const row = element("tr", "", table);
    element("code", field, element("td", "", row));
    const needed = (found.required || []).includes(field) ? " (required)" : "";
    element("td", kind(type) + needed, row).className = "note";
  }
}
function show(doc) {
  list.textContent = "";
  for (const [path, methods] of Object.entries(doc.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const box = element("details", "", list);
      const head = element("summary", "", box);
      element("span", method.toUpperCase(), head).className = "method";
      element("code", path, head);
      element("span", " " + operation.summary, head).className = "note";
      const bodies = { Request: operation.requestBody, Answer: operation.responses["200"] };
      for (const [title, body] of Object.entries(bodies)) {
        const json = body && body.content && body.content["application/json"];
        if (!json) continue;
        element("strong", title, box);
        fields(doc, json.schema, box);
      }
    }
  }
}
async function load() {
  const key = document.getElementById("key").value;
  const headers = key ? { authorization: "Bearer " + key } : {};
  const answer = await fetch("openapi.json", { headers });
  document.getElementById("ask").hidden = answer.status !== 401;
  if (answer.ok) show(await answer.json());
  else list.textContent = "The document needs an API key.";
}
document.getElementById("key").addEventListener("change", load);
load();
</script>
"""
