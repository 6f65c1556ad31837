// What the scripts of Node's clients share; the counterpart of checks.py.

export const URL_V1 = process.env.REALIGN_BASE_URL;
export const MODEL = process.env.REALIGN_MODEL;
export const HELLO = [{ role: "user", content: "Say hello." }];

export function expect(holds, why) {
  if (!holds) throw new Error(typeof why === "string" ? why : JSON.stringify(why));
}

/** The call is rejected, and the error's text or body has the words. */
export async function refused(call, ...words) {
  let error;
  try {
    await call();
  } catch (caught) {
    error = caught;
  }
  expect(error, "the call was not refused");
  const text = `${error} ${error.responseBody ?? ""}`;
  for (const word of words) expect(text.includes(word), `${word} is not in ${text}`);
  return error;
}

/** Whether arguments are what the function's schema allows. */
export function isWeather(given) {
  const value = typeof given === "string" ? JSON.parse(given) : given;
  const fits = ["Oslo", "Rome", "Lima"].includes(value.city) && value.days >= 1 && value.days <= 7;
  expect(fits, `arguments ${JSON.stringify(value)}`);
}

export async function report(checks) {
  const only = process.argv.slice(2);
  for (const check of checks) {
    if (only.length && !only.includes(check.name)) continue;
    let error = null;
    try {
      await check();
    } catch (caught) {
      error = `${caught?.stack ?? caught} ${caught?.responseBody ?? ""}`;
    }
    console.log(`{"check": ${JSON.stringify(check.name)}, "error": ${JSON.stringify(error)}}`);
  }
}
