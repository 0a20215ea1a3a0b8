//! Programs that everybody knows, with sidecars between them and nothing declared.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::ensure;
use support::{Family, Program, User, http, wait_until};

use crate::{
    carried, listens, said,
    wire::{PORT, Pair},
};

#[test]
fn redis_serves_its_client_and_its_benchmark() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let mut command = pair.server.command(User::App, "redis-server");
        command.args(["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no"]);
        command.args(["--save", "", "--appendonly", "no", "--dir", "/tmp"]);
        let _redis = pair.server.start("redis-server", command)?;
        wait_until(Duration::from_secs(10), "redis listens", || listens(&pair.server, 6379))?;
        for family in Family::ALL {
            let host = pair.server.address(family)?.to_string();
            let cli = |words: &[&str]| {
                said(&pair, "redis-cli", |command| {
                    command.args(["-h", &host]).args(words);
                })
            };
            ensure!(cli(&["SET", "door", "open"])?.trim() == "OK", "SET by {family}");
            ensure!(cli(&["GET", "door"])?.trim() == "open", "GET by {family}");
            let measured = said(&pair, "redis-benchmark", |command| {
                command.args(["-h", &host, "-n", "2000", "-c", "20", "-P", "4", "-t", "set,get", "-q"]);
            })?;
            ensure!(
                measured.contains("SET:") && measured.contains("GET:") && measured.contains("requests per second"),
                "redis-benchmark says {measured}"
            );
        }
        ensure!(
            carried(&pair.outbound, "outbound")? >= 40.0,
            "outbound did not carry it"
        );
        ensure!(carried(&pair.inbound, "inbound")? >= 40.0, "inbound did not carry it");
        Ok(())
    });
}

#[test]
fn an_http_1_server_gives_out_its_pages() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let pages = pair.server.folder().join("pages");
        fs::create_dir(&pages)?;
        fs::set_permissions(&pages, fs::Permissions::from_mode(0o755))?;
        fs::write(pages.join("small.txt"), "a small page")?;
        let large: String = (0..400_000).map(|line| format!("line {line}\n")).collect();
        fs::write(pages.join("large.txt"), &large)?;
        let mut command = pair.server.command(User::App, "/usr/bin/python3");
        command
            .args(["-m", "http.server", "--bind", "::", "--directory"])
            .arg(&pages);
        command.arg(PORT.to_string());
        let _server = pair.server.start("http-server", command)?;
        wait_until(Duration::from_secs(10), "the server listens", || {
            listens(&pair.server, PORT)
        })?;
        for family in Family::ALL {
            let address = pair.server.at(family, PORT)?;
            let small = http::get(&pair.client, address, "/small.txt")?;
            ensure!(
                (small.status, small.body.as_str()) == (200, "a small page"),
                "by {family} there came {small:?}"
            );
            let answer = http::get(&pair.client, address, "/large.txt")?;
            ensure!(
                answer.status == 200 && answer.body == large,
                "of {} bytes {} came by {family}, or others",
                large.len(),
                answer.body.len()
            );
            ensure!(
                http::get(&pair.client, address, "/nothing")?.status == 404,
                "what is not there"
            );
        }
        ensure!(carried(&pair.outbound, "outbound")? >= 6.0, "outbound did not carry it");
        ensure!(carried(&pair.inbound, "inbound")? >= 6.0, "inbound did not carry it");
        Ok(())
    });
}

#[test]
fn tls_between_two_others_crosses_unopened() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let folder = pair.server.folder();
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let mut command = pair.server.command(User::Root, "openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        command.args([
            "-days",
            "2",
            "-subj",
            "/CN=shop.test",
            "-addext",
            "subjectAltName=DNS:shop.test",
        ]);
        command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        pair.server.run("openssl-req", command)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;

        let mut command = pair.server.command(User::App, "openssl");
        command.args(["s_server", "-accept", &PORT.to_string(), "-rev", "-quiet"]);
        command.arg("-key").arg(&key).arg("-cert").arg(&certificate);
        let _server = pair.server.start("s_server", command)?;
        let address = pair.server.at(Family::V4, PORT)?;
        wait_until(Duration::from_secs(10), "s_server listens", || {
            listens(&pair.server, PORT)
        })?;

        // It takes the server for shop.test by its certificate: nobody has opened the connection on the way.
        let script = format!(
            "(echo portunus; sleep 30) | exec openssl s_client -quiet -connect {address} -servername shop.test \
             -verify_hostname shop.test -verify_return_error -CAfile {}",
            certificate.display()
        );
        let mut command = pair.client.command(User::App, "sh");
        command.args(["-c", &script]);
        let mut client: Program = pair.client.start("s_client", command)?;
        client.says("sunutrop", Duration::from_secs(20))?;
        ensure!(carried(&pair.outbound, "outbound")? >= 1.0, "outbound did not carry it");
        ensure!(carried(&pair.inbound, "inbound")? >= 1.0, "inbound did not carry it");
        Ok(())
    });
}
