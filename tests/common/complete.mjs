// Greedy text by node-llama-cpp's own API: complete.mjs FOLDER MODEL PROMPT TOKENS, FOLDER having node_modules.
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, prompt, tokens] = process.argv.slice(2);
const entry = path.join(folder, "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama, LlamaCompletion} = await import(pathToFileURL(entry));

const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 2});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 256, threads: 2});
const completion = new LlamaCompletion({contextSequence: context.getSequence()});
const text = await completion.generateCompletion(prompt, {maxTokens: Number(tokens), temperature: 0});
process.stdout.write(text + "\n");
await llama.dispose();
