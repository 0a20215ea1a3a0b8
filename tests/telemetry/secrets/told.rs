//! Secrets in what operators tell: in manifests and in settings, where something else belongs.

use std::time::Duration;

use anyhow::{Result, ensure};
use rcgen::KeyPair;
use support::{Member, User, build, wait_until};

use super::plants::{Plants, base64};
use super::world::{Said, World};

/// Tells all of it; returns what programs that do not start have to say.
pub(crate) fn plant(world: &World, plants: &mut Plants) -> Result<Vec<Said>> {
    manifests(world, plants)?;
    settings(world, plants)
}

fn manifests(world: &World, plants: &mut Plants) -> Result<()> {
    let workload = |metadata: &str, spec: &str| {
        format!(
            "apiVersion: portunus.dev/v1alpha1\nkind: Workload\nmetadata: {{name: bad, namespace: shop{metadata}}}\n\
             spec:\n  addresses: [10.9.9.9]\n{spec}\n"
        )
    };
    let mut token = |place: &str| plants.token(&format!("a token in {place}"));
    let mut all = vec![
        workload("", &format!("  joinToken: {}", token("a field that there is not"))),
        workload("", &format!("  {}: 1", token("the name of a field"))),
        workload("", &format!("  serviceAccount: {}", token("serviceAccount"))),
        workload(
            "",
            &format!(
                "  joinTokenSha256: {}0",
                token("joinTokenSha256, with a digit too much")
            ),
        ),
        workload(
            "",
            &format!("  joinTokenSha256: [{}]", token("a list in joinTokenSha256")),
        ),
        workload("", &format!("  zone: \"{}\\n\"", token("zone"))),
        workload("", &format!("  weight: {}", token("weight"))),
        workload("", &format!("  ports: [{{name: {}, port: 1}}]", token("a port's name"))),
        workload("", &format!("  ports: [{{port: {}}}]", token("a port"))),
        workload(&format!(", labels: {{app: {}}}", token("a label")), ""),
        workload(&format!(", labels: {{{}: app}}", token("a label's key")), ""),
        workload(&format!(", labels: {{a: b}}, uid: {}", token("metadata")), ""),
        workload("", "").replace("10.9.9.9", &token("an address")),
        workload("", "").replace("name: bad", &format!("name: {}", token("a name"))),
        workload("", "").replace("v1alpha1", &token("apiVersion")),
        workload("", "").replace("kind: Workload", &format!("kind: {}", token("kind"))),
        format!("{}\nkind: [\n", token("a file that is no YAML")),
        format!("kind: *{}\n", token("an alias that there is not")),
        format!("{0}: 1\n{0}: 2\n", token("a key that stands twice")),
        format!("- {}\n", token("a list")),
    ];
    let short = base64(&hex_bits(&token("serviceAccount, in base64")));
    all.push(workload("", &format!("  serviceAccount: {short}")));
    let key = KeyPair::generate()?;
    plants.known("a private key in a manifest", &key.serialize_der()[40..64]);
    let pem = key.serialize_pem();
    let line = pem.lines().nth(2).unwrap_or_default();
    plants.known("a line of a private key in a manifest", line.as_bytes());
    all.push(workload("", &format!("  zone: |\n    {}", pem.replace('\n', "\n    "))));
    all.push(workload("", &format!("  serviceAccount: {line}")));
    let password = plants.text("the data of a Secret");
    all.push(format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bad, namespace: shop}}\ndata: {{password: {}}}\nstringData: {{password: {password}}}\n",
        base64(password.as_bytes()),
    ));
    for (number, manifest) in all.iter().enumerate() {
        world.control.apply(&format!("bad-{number}"), manifest)?;
    }
    // Names of files and of objects come from strangers, too.
    world
        .control
        .apply("bad-\u{202e}\u{1b}[2J\r\n", "kind: \"\\u202e\\e[2J\\r\\n\"\n")?;
    let last = format!("bad-{}.yaml", all.len() - 2);
    let page = || {
        world
            .control
            .admin("/source")
            .is_ok_and(|page| page.body.contains(&last))
    };
    wait_until(Duration::from_secs(10), "control says what is wrong", page)
}

fn settings(world: &World, plants: &mut Plants) -> Result<Vec<Said>> {
    let token = plants.token("a token in place of its file");
    let key = KeyPair::generate()?;
    plants.known("a key in place of a file", &key.serialize_der()[40..64]);
    let user = |what: &str, plants: &mut Plants| format!("http://user:{}@collector.test:4317", plants.text(what));
    let wrong = [
        ("PORTUNUS_JOIN_TOKEN_FILE", token.clone()),
        (
            "PORTUNUS_CONTROL_IDENTITY",
            plants.token("a token in place of control's identity"),
        ),
        (
            "PORTUNUS_CONTROL_ADDRESS",
            plants.token("a token in place of control's address"),
        ),
        ("PORTUNUS_TRUST_BUNDLE", key.serialize_pem()),
        (
            "PORTUNUS_TRACE_COLLECTOR",
            user("the password in --trace-collector", plants),
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            user("the password in the collector's URL", plants),
        ),
        (
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            format!(
                "https://collector.test/?key={}",
                plants.text("the key in the query of a collector's URL")
            ),
        ),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            format!(
                "authorization Bearer {}",
                plants.text("a header for the collector that is none")
            ),
        ),
        ("PORTUNUS_TOKEN", plants.text("a variable that means nothing")),
    ];
    let pod = &world.stranger;
    let mut said = Vec::new();
    let member = Member {
        account: "forgetful",
        app: "forgetful",
        ports: &[],
    };
    // All is right but the file.
    let enrolled = world.control.enrol(pod, &member)?;
    let own = std::fs::read_to_string(pod.folder().join("join-token"))?;
    plants.known("the own token in place of its file", own.as_bytes());
    let right_but_one: Vec<_> = enrolled
        .iter()
        .map(|(key, value)| match key.as_str() {
            key @ "PORTUNUS_JOIN_TOKEN_FILE" => (key, own.clone()),
            key => (key, value.clone()),
        })
        .collect();
    // All at once, and each alone: what stands behind a first mistake is looked at, too.
    let alone = wrong.iter().map(std::slice::from_ref);
    let all = [&wrong[..], &right_but_one].into_iter().chain(alone);
    for (number, settings) in all.enumerate() {
        for print in [true, false] {
            let mut command = pod.command(User::Sidecar, pod.place(&build::sidecar()?)?);
            command.arg("proxy").envs(settings.iter().cloned());
            if print {
                command.arg("--print-config");
            } else {
                // Where nothing stops it, this does.
                command.args(["--log-level", "trace", "--outbound-listen", "192.0.2.1:1"]);
            }
            let mut program = pod.start("mistaken", command)?;
            program.wait(Duration::from_secs(20))?;
            said.push(Said {
                place: format!("what a sidecar says of settings {number}"),
                bytes: program.output().into(),
            });
        }
    }
    ensure!(
        said.iter()
            .any(|said| String::from_utf8_lossy(&said.bytes).contains("settings are wrong")),
        "nobody complains"
    );
    Ok(said)
}

/// The bits of a token in hex.
fn hex_bits(token: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default();
    let pairs = token.as_bytes().chunks_exact(2);
    pairs
        .filter_map(|pair| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).ok())
        .collect()
}
