//! Generates the Rust of the peers' protocols, with no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=apps/proto");
    let protocols = ["grpc/testing/test.proto", "helloworld/greeter.proto"];
    let files = protox::compile(protocols, ["apps/proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
