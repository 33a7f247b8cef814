"use strict";
// The browser of all predictions. Its filter stands in the address after "#", so that every view and
// every item has a link. All texts are set as text, never as HTML: models may say anything.

const PAGE_ITEMS = 20;
const FOLD_ANSWERS = 12;
const ANY = "any";
const filter = document.getElementById("filter");
const list = document.getElementById("list");
const count = document.getElementById("count");
const more = document.getElementById("more-items");

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function unpack() {
  const packed = document.getElementById("archive").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// answer(model, item): {verdict, thinking, rest, samples}, or undefined where there is none.
function index(data) {
  const blocks = data.models.map(() => []);
  for (const block of data.answers) blocks[block.model].push(block);
  return (model, item) => {
    for (const block of blocks[model]) {
      const place = item - block.first;
      const verdict = block.verdicts[place];
      if (verdict !== undefined && verdict !== "-") {
        const [thinking, rest] = block.texts[place];
        return { verdict, thinking, rest, samples: block.samples[place] ?? [] };
      }
    }
    return undefined;
  };
}

const control = (name) => filter.elements.namedItem(name);

function fill(name, options) {
  const select = control(name);
  for (const [value, text] of [["", ANY], ...options]) select.append(new Option(text, value));
  // One choice is none. A and B stay: they are what the browser is for.
  select.closest("label").hidden = options.length < 2 && !["right", "wrong"].includes(name);
}

function fillAll(data) {
  const distinct = (values) => [...new Set(values)].filter((value) => value !== null && value !== "");
  const plain = (values) => distinct(values).map((value) => [String(value), String(value)]);
  fill("tested", plain(data.items.map((item) => item.task)));
  fill("form", plain(data.items.map((item) => item.form)));
  fill("trained", plain(data.models.map((model) => model.trained_on)));
  fill("method", plain(data.models.map((model) => model.method)));
  fill("seed", plain(data.models.map((model) => model.seed)));
  fill("verdict", [["r", "right"], ["wu", "wrong"], ["u", "unreadable"]]);
  const models = data.models.map((model, place) => [String(place), model.name]);
  fill("right", models);
  fill("wrong", models);
}

// Items in their order, each with the models whose answers to it pass the filter; A and B come first.
function matches(data, answer, wanted) {
  const search = wanted.search.toLowerCase();
  const chosen = data.models.map((model) =>
    (!wanted.trained || model.trained_on === wanted.trained) &&
    (!wanted.method || model.method === wanted.method) &&
    (!wanted.seed || String(model.seed) === wanted.seed));
  const compared = [wanted.right, wanted.wrong].filter(Boolean).map(Number);
  const found = [];
  data.items.forEach((item, place) => {
    if (wanted.item && item.example_id !== wanted.item) return;
    if (wanted.tested && item.task !== wanted.tested) return;
    if (wanted.form && item.form !== wanted.form) return;
    if (wanted.right && answer(+wanted.right, place)?.verdict !== "r") return;
    if (wanted.wrong && !"wu".includes(answer(+wanted.wrong, place)?.verdict ?? "?")) return;
    const asked = item.question.toLowerCase().includes(search);
    const passes = (model) => {
      const given = chosen[model] && answer(model, place);
      if (!given || (wanted.verdict && !wanted.verdict.includes(given.verdict))) return false;
      return asked || `${given.thinking}\n${given.rest}`.toLowerCase().includes(search);
    };
    const models = [...data.models.keys()].filter(passes);
    if (models.length) found.push({ item, place, models: [...new Set([...compared, ...models])] });
  });
  return found;
}

function badge(verdict) {
  const words = { r: "✓ right", w: "✗ wrong", u: "✗ unreadable" };
  return element("span", `badge ${verdict === "r" ? "right" : "wrong"}`, words[verdict]);
}

function answerLine(name, given) {
  const line = element("li");
  line.append(badge(given.verdict), " ", element("span", "model", name));
  if (given.thinking) line.append(element("pre", "thinking", given.thinking));
  line.append(element("pre", "", given.rest));
  if (given.samples.length) line.append(sampled(given.samples));
  return line;
}

// What else the model says when it does not take the likeliest word each time.
function sampled(samples) {
  const made = element("details");
  const right = samples.filter(([verdict]) => verdict === "r").length;
  made.append(element("summary", "", `${plural(samples.length, "sample")}, ${right} right`));
  for (const [verdict, text] of samples) made.append(badge(verdict), element("pre", "", text));
  return made;
}

function card(data, answer, { item, place, models }) {
  const made = element("article");
  const question = element("div", "question");
  if (item.picture) {
    const picture = element("img");
    picture.src = item.picture;
    picture.alt = `The picture of ${item.example_id}`;
    question.append(picture);
  }
  const text = element("div");
  const gold = element("p", "gold", "Right answer: ");
  gold.append(element("b", "", item.gold));
  const link = element("a", "", item.example_id);
  link.href = `#item=${encodeURIComponent(item.example_id)}`;
  const source = element("p");
  source.append(link, item.form ? ` · ${item.form}` : "");
  text.append(element("p", "", item.question), gold, source);
  question.append(text);
  const answers = element("ul", "answers");
  const lines = models.map((model) => answerLine(data.models[model].name, answer(model, place)));
  answers.append(...lines.slice(0, FOLD_ANSWERS));
  if (lines.length > FOLD_ANSWERS) {
    const rest = element("button", "", `${lines.length - FOLD_ANSWERS} more answers`);
    rest.addEventListener("click", () => rest.replaceWith(...lines.slice(FOLD_ANSWERS)));
    answers.append(rest);
  }
  made.append(question, answers);
  return made;
}

const read = () => Object.fromEntries(new FormData(filter));
const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

async function start() {
  if (!("DecompressionStream" in window)) {
    count.textContent = "This browser is too old to unpack them: it lacks DecompressionStream.";
    return;
  }
  const data = await unpack();
  const answer = index(data);
  let found = [];
  let drawn = 0;
  fillAll(data);
  filter.hidden = false;

  const drawMore = () => {
    const next = found.slice(drawn, drawn + PAGE_ITEMS);
    list.append(...next.map((match) => card(data, answer, match)));
    drawn += next.length;
    more.hidden = drawn >= found.length;
  };
  const draw = () => {
    found = matches(data, answer, read());
    drawn = 0;
    list.replaceChildren();
    const answers = found.reduce((total, match) => total + match.models.length, 0);
    count.textContent = `${plural(found.length, "item")}, ${plural(answers, "answer")}`;
    drawMore();
  };
  // An address with "=" is a filter; one without is a section's.
  const show = () => {
    const address = location.hash.slice(1);
    if (!address.includes("=")) {
      document.getElementById(address)?.scrollIntoView();
      return;
    }
    filter.reset();
    for (const [name, value] of new URLSearchParams(address)) {
      if (control(name)) control(name).value = value;
    }
    draw();
    document.getElementById("predictions").scrollIntoView();
  };
  const putAddress = () => {
    const set = Object.entries(read()).filter(([, value]) => value);
    history.replaceState(null, "", `#${set.length ? new URLSearchParams(set) : "predictions"}`);
  };
  filter.addEventListener("input", () => { putAddress(); draw(); });
  filter.addEventListener("submit", (event) => event.preventDefault());
  control("clear").addEventListener("click", () => { filter.reset(); putAddress(); draw(); });
  more.addEventListener("click", drawMore);
  addEventListener("hashchange", show);
  // MLflow shows the page in a frame that may follow no link, not even to a place in itself.
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    show();
  });
  draw();
  show();
}

start();
