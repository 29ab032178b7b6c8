// Numbers and failures in plain words.

export const count = (number) => number.toLocaleString("en");

export function seconds(time_s) {
  if (time_s < 1) return `${Math.round(time_s * 1000)} ms`;
  return `${time_s.toFixed(time_s < 10 ? 1 : 0)} s`;
}

export function percent(share) {
  const value = share * 100;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
}

export function bytes(size_bytes) {
  if (size_bytes >= 1e9) return `${(size_bytes / 1e9).toFixed(1)} GB`;
  return size_bytes >= 1e6 ? `${(size_bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(size_bytes / 1e3)} kB`;
}

/** What a gate measures, for whoever has never seen one; an unknown name is shown as it is. */
const GATES = {
  clear_agreement: "Same next token as the original, where that is sure of it",
  kl_mean: "Distance from the original's choice of tokens (KL)",
  cosine_mean: "Vectors point where the original's do (cosine, mean)",
  cosine_p1: "Vectors point where the original's do (cosine, worst 1 %)",
  correlation: "Similarities rank as the original's do (correlation)",
  spread: "Vectors lie as far apart as the original's",
  image_sensitivity: "Answers depend on the picture as the original's do",
  accuracy_loss_points: "Right answers lost, in percentage points",
};
const PARTS = {
  low: "at least, with 95 % certainty",
  high: "at most, with 95 % certainty",
  image: "pictures",
  image_features: "picture tokens",
  text: "texts",
};

export function gate(name) {
  const [kind, part] = name.split("/");
  const words = GATES[kind] ?? kind;
  return part ? `${words}: ${PARTS[part] ?? part}` : words;
}
