// Bundles the view and d3 into one file, and writes d3's licences beside it. Run by `npm ci && npm run build` in this folder.
// The bundle names the hash of its sources, so that a test can tell a stale one without node.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const SOURCES = ["chart.js", "dom.js", "explorer.js", "package-lock.json", "page.js", "panel.js"];
const OUT = new URL("../emointerp/widgets/static/explorer/", import.meta.url);

const hash = createHash("sha256");
for (const name of SOURCES) hash.update(readFileSync(new URL(name, import.meta.url)));
const { metafile } = await build({
  entryPoints: ["explorer.js"], bundle: true, format: "esm", target: "es2022", minify: true, charset: "utf8", metafile: true,
  legalComments: "none", outfile: new URL("explorer.js", OUT).pathname,
  banner: { js: `// emointerp's explorer with parts of d3 (LICENSE.d3); built by js/build.js from sources of sha256 ${hash.digest("hex")}` },
});

const used = [...new Set(Object.keys(metafile.inputs).map((path) => /node_modules\/([^/]+)\//.exec(path)?.[1]).filter(Boolean))].sort();
const texts = used.map((name) => {
  const folder = new URL(`node_modules/${name}/`, import.meta.url);
  const { version, license } = JSON.parse(readFileSync(new URL("package.json", folder)));
  return `${name} ${version} (${license})\n\n${readFileSync(new URL("LICENSE", folder), "utf8").trim()}\n`;
});
writeFileSync(new URL("LICENSE.d3", OUT), `explorer.js contains parts of these packages of d3 (https://d3js.org):\n\n${texts.join("\n\n")}`);
