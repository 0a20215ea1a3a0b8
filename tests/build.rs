//! Generates the Rust of the peers' protocols, with no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=apps/proto");
    let files = protox::compile(["grpc/testing/test.proto", "helloworld/greeter.proto"], ["apps/proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
