// Prints MikkTSpace's own tangents of a GLB's first primitive, one for each corner, as JSON.
import { readFileSync } from "node:fs";
import { NodeIO } from "@gltf-transform/core";
import { generateTangents } from "mikktspace";

const document = await new NodeIO().readBinary(new Uint8Array(readFileSync(process.argv[2])));
const primitive = document.getRoot().listMeshes()[0].listPrimitives()[0];
const corners = primitive.getIndices().getArray();
const [positions, normals, uvs] = ["POSITION", "NORMAL", "TEXCOORD_0"].map((name) => {
  const accessor = primitive.getAttribute(name);
  return new Float32Array([...corners].flatMap((i) => accessor.getElement(i, [])));
});
const tangents = generateTangents(positions, normals, uvs);
for (let i = 3; i < tangents.length; i += 4) tangents[i] *= -1; // its v runs upwards, glTF's downwards
process.stdout.write(JSON.stringify([...tangents]));
