// What the view of traces says: numbers and text of one trace, nothing of the page. trace_view.py puts this file and
// trace_view.js into one function.
"use strict";

// A trace, the site whose restoring is shown, and whether before or after an edit or as the difference of the two.
class Shown {
  trace;
  site;
  state = "before";

  get run() {
    return this.state === "after" ? this.trace.after : this.trace;
  }

  get differs() {
    return this.state === "difference";
  }

  get depth() {
    return this.trace.sites[this.site][0].length;
  }

  get window() {
    return this.site === "resid_post" ? 1 : this.trace.window;
  }

  measured(of, row, column) {
    return of.sites[this.site][row][column];
  }

  effect(of, row, column) {
    return minus(this.measured(of, row, column), of.corrupted);
  }

  // What a cell's colour stands for.
  value(row, column) {
    const { trace } = this;
    if (!this.differs) return this.measured(this.run, row, column);
    return minus(this.effect(trace.after, row, column), this.effect(trace, row, column));
  }

  // One scale for all sites of a fact, before and after an edit; that of differences has 0 in its middle.
  scale() {
    const states = [this.trace, this.trace.after].filter(Boolean);
    if (!this.differs) {
      const ends = states.flatMap((of) => [of.corrupted, of.clean]), least = Math.min(...ends);
      return [least, Math.max(...ends, least + 1e-6)];
    }
    const effects = states.map((of) => Object.values(of.sites).flat(2).map((value) => minus(value, of.corrupted)));
    const most = Math.max(...effects[0].map((value, index) => Math.abs(minus(effects[1][index], value) ?? 0)), 1e-6);
    return [-most, most];
  }

  // All numbers of a fact have as many decimals: three for a probability that is not small.
  format(value, signed = false) {
    if (value === null) return "not measured";
    const size = Math.max(Math.abs(this.trace.clean), Math.abs(this.trace.corrupted), 1e-6);
    const text = Math.abs(value).toFixed(Math.min(8, Math.max(2, 2 - Math.floor(Math.log10(size)))));
    return (Number(text) === 0 ? "" : value < 0 ? "−" : signed ? "+" : "") + text;
  }

  share(of, row, column) {
    const part = this.effect(of, row, column), total = minus(of.clean, of.corrupted);
    if (part === null) return "not measured";
    if (total === null || Math.abs(total) < 1e-6) return "no total effect";
    const percent = (100 * part) / total, text = Math.abs(percent).toFixed(1);
    return `${percent < 0 && Number(text) ? "−" : ""}${text} %`;
  }

  quantity(of) {
    if (this.trace.metric === "kl") return "−KL(clean ‖ run), nats";
    if (this.trace.metric === "logit_difference") return `logit(${plain(of.answer)}) − logit(${plain(of.foil ?? "")})`;
    return `p(${plain(of.answer)})`;
  }

  // Which layers were restored, as `restored_layers` in workbench/tracing.
  layers(column) {
    const first = Math.max(0, column - Math.floor(this.window / 2));
    const last = Math.min(this.depth, column + Math.ceil(this.window / 2)) - 1;
    return first === last ? `layer ${first}` : `layers ${first} to ${last}`;
  }

  tokens(row) {
    return this.trace.tokens.slice(row, row + this.trace.span);
  }

  inSubject(row) {
    return this.trace.subject[0] <= row && row < this.trace.subject[1];
  }

  // All that is said of a cell, as pairs of name and number.
  facets(row, column) {
    const effect = (of) => this.format(this.effect(of, row, column), true);
    const measured = (of) => this.format(this.measured(of, row, column));
    if (!this.differs) {
      const of = this.run;
      return [
        [this.quantity(of), measured(of)],
        ["Indirect effect", effect(of)],
        ["Share of total effect", this.share(of, row, column)],
      ];
    }
    const both = [["before", this.trace], ["after", this.trace.after]];
    return [
      ...both.map(([when, of]) => [`${this.quantity(of)} ${when}`, measured(of)]),
      ...both.map(([when, of]) => [`Indirect effect ${when}`, effect(of)]),
      ["Difference", this.format(this.value(row, column), true)],
    ];
  }

  // The same in a sentence, to be heard.
  sentence(row, column) {
    const said = this.facets(row, column).map(([name, number]) => `${name}: ${number}`).join("; ");
    const subject = this.inSubject(row) ? " in the subject" : "";
    const token = `Token ${plain(this.tokens(row).join(""))}, ${row + 1} of ${this.trace.tokens.length}${subject}`;
    return `${token}; ${this.layers(column)}. ${said}.`;
  }

  // What the numbers of all cells are compared with.
  summary() {
    const { trace, run } = this, total = (of) => this.format(minus(of.clean, of.corrupted));
    if (this.differs) {
      return `Indirect effect after the edit minus that before it; the total effect was ${total(trace)} and is ${total(trace.after)}`;
    }
    const ends = `${this.format(run.clean)} clean and ${this.format(run.corrupted)} with the subject* corrupted`;
    return `${this.quantity(run)} is ${ends}: a total effect of ${total(run)}`;
  }
}

// null where either was not measured; 0 where only the rounding of floating point is left
function minus(a, b) {
  if (a === null || b === null) return null;
  return Math.abs(a - b) < 1e-9 * Math.abs(a) ? 0 : a - b;
}

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥" };

function escaped(text) {
  const code = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;
  return [...text].map((character) => SIGNS[character] ?? code(character)).join("");
}

// A token in a sentence: without the space around it.
function plain(token) {
  return token.trim().replace(/\p{Cc}+/gu, escaped) || escaped(token) || "∅";
}

// A token exactly, as pieces [text, whether it is a sign for white space or a control character].
function exactly(token) {
  if (token === "") return [["∅", true]];
  const pieces = token.split(/([\s\p{Cc}]+)/u).filter(Boolean);
  return pieces.map((piece) => (/^[\s\p{Cc}]/u.test(piece) ? [escaped(piece), true] : [piece, false]));
}
