// Reads a GLB with glTF Transform and the compressions' own decoders, and writes it without compression.
import { NodeIO } from "@gltf-transform/core";
import { EXTMeshoptCompression, EXTTextureWebP, KHRDracoMeshCompression, KHRMeshQuantization } from "@gltf-transform/extensions";
import draco3d from "draco3dgltf";
import { MeshoptDecoder } from "meshoptimizer";

const [from, to] = process.argv.slice(2);
const io = new NodeIO()
  .registerExtensions([EXTMeshoptCompression, EXTTextureWebP, KHRDracoMeshCompression, KHRMeshQuantization])
  .registerDependencies({ "draco3d.decoder": await draco3d.createDecoderModule(), "meshopt.decoder": MeshoptDecoder });
const document = await io.read(from);
for (const extension of document.getRoot().listExtensionsUsed()) {
  if (["KHR_draco_mesh_compression", "EXT_meshopt_compression"].includes(extension.extensionName)) extension.dispose();
}
await io.write(to, document);
