//! Generates the Rust of the mesh's protocol, with no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=mesh");
    let files = protox::compile(["mesh/v1/identity.proto", "mesh/v1/discovery.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
