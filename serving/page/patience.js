// Asking until there is an answer: over a busy server, one that is away, and one that wants a key.

import { Failure } from "./server.js";

const MOST_BUSY = 20;
const MOST_RETURNS = 5; // a server that goes away at the same question again and again is not asked a sixth time

/**
 * Run some work; where the server is why it failed, wait and run it again. The signal stops both.
 * @param {(told: string) => void} waits Called with words while it waits.
 * @throws {Failure} The request itself is refused, the server is at fault, or the signal stopped it.
 */
export async function patiently(work, status, signal, waits) {
  for (let busy = 0, returns = 0; ;) {
    try {
      return await work();
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (failure.kind === "busy" && busy < MOST_BUSY) {
        busy += 1;
        await counted(failure, signal, waits);
      } else if (failure.kind === "key" || (["gone", "loading"].includes(failure.kind) && returns < MOST_RETURNS)) {
        returns += failure.kind !== "key";
        const again = status.ready(signal);
        status.noted(failure);
        waits(failure.kind === "key" ? failure.message : `${failure.message} This is asked again when it is back.`);
        await again;
      } else throw failure;
    }
  }
}

async function counted(failure, signal, waits) {
  for (let left_s = failure.retryAfter_s; left_s > 0; left_s -= 1) {
    waits(`${failure.message} Asking again in ${left_s} s.`);
    await pause(1000, signal);
  }
}

function pause(time_ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, time_ms);
    const stop = () => {
      clearTimeout(timer);
      reject(new Failure("stopped", "Stopped."));
    };
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
