// What every script here shares: the task comes as JSON on stdin, because arguments show in `ps`.
import { text } from "node:stream/consumers";

export const readTask = async () => JSON.parse(await text(process.stdin));

export const report = (result) => console.log(JSON.stringify(result));

/** The value that a promise is rejected with; it is a failure of the script when it is not. */
export async function refusal(promise) {
  let value;
  try {
    value = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`not refused: ${Object.keys(value ?? {})}`);
}
