// Reads a GLB with glTF Transform, Draco's own decoder included, and writes it without compression.
import { NodeIO } from "@gltf-transform/core";
import { EXTTextureWebP, KHRDracoMeshCompression } from "@gltf-transform/extensions";
import draco3d from "draco3dgltf";

const [from, to] = process.argv.slice(2);
const io = new NodeIO()
  .registerExtensions([EXTTextureWebP, KHRDracoMeshCompression])
  .registerDependencies({ "draco3d.decoder": await draco3d.createDecoderModule() });
const document = await io.read(from);
for (const extension of document.getRoot().listExtensionsUsed()) {
  if (extension.extensionName === "KHR_draco_mesh_compression") extension.dispose();
}
await io.write(to, document);
