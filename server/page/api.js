// The server's answers, and its problems as errors that people can read.

export class Refused extends Error {
  constructor(problem, retryAfter) {
    super(problem.detail || problem.title || "The server refused.");
    this.status = problem.status;
    this.retryAfter = retryAfter; // seconds, or null
  }
}

export async function read(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// The API key, where the server wants one; it is forgotten with the tab.
export const key = {
  get: () => sessionStorage.getItem("key") ?? "",
  set: (value) => sessionStorage.setItem("key", value),
};

export async function generate(wish, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const answer = await fetch("/generate", { method: "POST", headers, body: body(wish), signal });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// A seed may have 19 digits, more than a JavaScript number holds: it is a string here and a number on the wire.
function body({ seed, ...wish }) {
  return JSON.stringify(wish).replace(/}$/, `,"seed":${BigInt(seed)}}`);
}

async function refusal(answer) {
  const problem = await answer.json().catch(() => ({ status: answer.status, title: answer.statusText }));
  const retry = answer.headers.get("Retry-After");
  return new Refused(problem, retry === null ? null : Number(retry));
}
