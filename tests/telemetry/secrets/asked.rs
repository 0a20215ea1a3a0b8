//! Secrets in what strangers and members ask: of control, of admin pages, and in TLS with certificates as none should be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use portunus_proto::mesh::v1::CertifyRequest;
use portunus_proto::mesh::v1::identity_client::IdentityClient;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use support::{Anybody, Family, Member, Pod, in_netns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::plants::Plants;
use super::world::{H2, World};
use crate::application::say;
use crate::raw::Asking;

pub(crate) fn plant(world: &World, plants: &mut Plants) -> Result<()> {
    of_control(world, plants)?;
    of_pages(world, plants)?;
    in_tls(world, plants)
}

fn of_control(world: &World, plants: &mut Plants) -> Result<()> {
    let asking = Asking::of(&world.control)?;
    let from = &world.stranger;
    let guesses = [
        plants.token("a token that is guessed"),
        plants.text("a token that is none"),
        plants.binary("a token that is too short"),
    ];
    for guess in &guesses {
        ensure!(asking.certify(from, None, guess, "")?.is_err(), "a guess was right");
    }
    let token = plants.token("a token in place of a workload's name");
    ensure!(asking.certify(from, None, "", &token)?.is_err(), "a name was believed");
    let token = plants.token("a token in place of a workload's name, behind its namespace");
    ensure!(
        asking.certify(from, None, "", &format!("shop/{token}"))?.is_err(),
        "a name was believed"
    );
    // Requests for certificates that say more than a key.
    let mut params = CertificateParams::default();
    params.distinguished_name.push(
        DnType::CommonName,
        plants.text("the name in a request for a certificate"),
    );
    let said = plants.text("the mail address in a request for a certificate");
    params.subject_alt_names = vec![SanType::Rfc822Name(format!("{said}@mesh.test").try_into()?)];
    let key = KeyPair::generate()?;
    plants.known("the key of a request", &key.serialize_der()[40..64]);
    let whole = params.serialize_request(&key)?.der().to_vec();
    let broken = [&whole[..whole.len() - 3], b"abc"].concat();
    let noise = plants.bytes("a request for a certificate that is noise");
    let refused = plants.token("a token beside a broken request");
    for csr in [whole, broken, noise] {
        let request = CertifyRequest {
            csr,
            join_token: refused.clone(),
            workload: String::new(),
        };
        let asked = asking.run(from, None, async |channel| {
            Ok(IdentityClient::new(channel).certify(request).await)
        })?;
        ensure!(asked.is_err(), "it was certified");
    }
    // A member says hello with a token in place of its name.
    let member = Member {
        account: "stranger",
        app: "stranger",
        ports: &[],
    };
    world.control.enrol(from, &member)?;
    world.control.until_known()?;
    let token = std::fs::read_to_string(from.folder().join("join-token"))?;
    plants.known("the join token of a stranger", token.as_bytes());
    let certified = asking.certify(from, None, &token, "")??;
    for name in ["a token in hello", "another token in hello"] {
        let token = plants.token(name);
        let hello = asking.hello(from, Some(&certified.credential), &format!("shop/{token}"))?;
        ensure!(hello.is_err(), "it was welcomed");
    }
    let plain = format!(
        "GET /?token={} HTTP/1.1\r\nHost: control\r\nAuthorization: {}\r\n\r\n",
        plants.text("the query of a plain request to control"),
        plants.text("authorization of a plain request to control")
    );
    say(from, world.control.at(Family::V4)?, plain.as_bytes())?;
    Ok(())
}

fn of_pages(world: &World, plants: &mut Plants) -> Result<()> {
    for (pod, whose, port) in [
        (world.control.pod(), "control", 9995),
        (&world.caller, "the caller's sidecar", 4191),
    ] {
        let mut text = |what: &str| plants.text(&format!("{what} asked of {whose}"));
        let requests = [
            format!(
                "GET /{}?key={} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nCookie: {}\r\nConnection: close\r\n\r\n",
                text("the path of a page"),
                text("the query of a page"),
                text("authorization for a page"),
                text("a cookie for a page")
            ),
            format!("{} /metrics HTTP/1.1\r\nHost: a\r\n\r\n", text("a method")),
            format!(
                "GET /metrics HTTP/1.1\r\nno field {}\r\n\r\n",
                text("a line that is no field")
            ),
            format!(
                "POST /drain HTTP/1.1\r\nHost: a\r\nOrigin: http://evil.test\r\nContent-Length: 24\r\n\r\n{}",
                text("a body")
            ),
        ];
        for request in requests {
            let admin = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            // What would drain a sidecar must come from a page of its own.
            if !request.starts_with("POST") || port != 4191 {
                say(pod, admin, request.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// Certificates that nobody believes, shown to a member and to control.
fn in_tls(world: &World, plants: &mut Plants) -> Result<()> {
    let ports = [
        (world.at(H2)?, b"portunus/h2".as_slice(), "a sidecar"),
        (world.control.at(Family::V4)?, b"h2", "control"),
    ];
    for (to, alpn, whose) in ports {
        let place = |what: &str, plants: &mut Plants| plants.text(&format!("{what} of a certificate shown to {whose}"));
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, place("the common name", plants));
        params
            .distinguished_name
            .push(DnType::OrganizationName, place("the organization", plants));
        let mail = format!("{}@mesh.test", place("the mail address", plants));
        let host = format!("{}.test", place("the DNS name", plants));
        params.subject_alt_names = vec![
            SanType::Rfc822Name(mail.try_into()?),
            SanType::DnsName(host.try_into()?),
        ];
        let key = KeyPair::generate()?;
        plants.known(
            &format!("the key of a certificate shown to {whose}"),
            &key.serialize_der()[40..64],
        );
        let own = params.self_signed(&key)?.der().to_vec();
        let cut = own[..own.len() - 20].to_vec();
        let noise = [b"0\x82\x01\x00".as_slice(), place("the bytes", plants).as_bytes()].concat();
        for certificate in [own, cut, noise] {
            let secret = place("what follows the handshake", plants);
            shake(&world.stranger, to, alpn, certificate, &key, secret.as_bytes())?;
        }
        // A record of TLS that says something else than a handshake.
        let record = [&[22, 3, 1, 0, 24][..], place("a record in place", plants).as_bytes()].concat();
        say(&world.stranger, to, &record)?;
    }
    Ok(())
}

/// Shows this certificate, and says more if it may.
fn shake(from: &Pod, to: SocketAddr, alpn: &[u8], certificate: Vec<u8>, key: &KeyPair, more: &[u8]) -> Result<()> {
    let key = aws_lc_rs::sign::any_supported_type(
        &PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
    )?;
    let shown = CertifiedKey::new(vec![CertificateDer::from(certificate)], key);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![alpn.to_vec()];
    in_netns(from, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let name = ServerName::try_from("server.test")?;
            let talk = async {
                let mut tls = connector.connect(name, TcpStream::connect(to).await?).await?;
                tls.write_all(more).await?;
                let mut answer = Vec::new();
                tls.read_to_end(&mut answer).await
            };
            let ended = tokio::time::timeout(Duration::from_secs(10), talk).await?;
            ensure!(ended.is_err(), "the certificate was believed");
            anyhow::Ok(())
        })
    })?
}
