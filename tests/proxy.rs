//! Clients and gateways behind an HTTP proxy: tunnels, credentials, exceptions, and a message for each failure.

use std::net::TcpListener;

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::common::{
    certificates::TestCa,
    connect_proxy::{ConnectProxy, ProxyConduct},
    nginx::Nginx,
    service::{Service, binary, run_to_exit},
};

/// A host that only a proxy knows.
const HOST: &str = "cc-executor.test";
const TOKEN: &str = "behind-a-proxy-and-32-characters-long";

fn service() -> Service {
    Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)])
}

/// Runs `echo ok` or `ps` at this URL with these variables.
fn call(word: &str, url: &str, env: &[(&str, &str)]) -> (String, String, i32) {
    let mut command = binary();
    command.args([word, "--url", url]).env("CC_EXECUTOR_TOKEN", TOKEN).envs(env.iter().copied());
    run_to_exit(if word == "run" { command.args(["--", "echo ok"]) } else { &mut command })
}

#[test]
fn a_plain_url_goes_through_the_proxy_of_http() {
    let service = service();
    let proxy = ConnectProxy::start(ProxyConduct::Forward(service.address));
    let url = format!("ws://{HOST}");
    assert_eq!(call("run", &url, &[("http_proxy", &proxy.url())]), ("ok\n".to_owned(), String::new(), 0));
    assert_eq!(call("ps", &url, &[("ALL_PROXY", &proxy.url())]).2, 0);
    let heads = proxy.heads();
    assert!(heads.len() == 2 && heads.iter().all(|head| head.starts_with("CONNECT cc-executor.test:80 HTTP/1.1\r\n")));
    assert!(!heads.concat().contains(TOKEN) && !heads.concat().contains("uthorization"), "{heads:?}");
    // In capitals it may come from a client of a web server.
    let (_, stderr, code) = call("run", &url, &[("HTTP_PROXY", &proxy.url()), ("HTTPS_PROXY", &proxy.url())]);
    assert!(code == 69 && stderr.contains("cannot be resolved"), "{stderr}");
    assert_eq!(proxy.heads().len(), 2);
}

#[test]
fn tls_is_between_the_client_and_the_service() {
    let (service, ca) = (service(), TestCa::new("proxy"));
    let certificate = ca.certificate(&[HOST]);
    let Some(nginx) = Nginx::start("TLS through a proxy", service.address, &[certificate]) else { return };
    let proxy = ConnectProxy::start(ProxyConduct::Forward(nginx.addresses[0]));
    let (proxies, file) = (proxy.url(), ca.file());
    let env = [("HTTPS_PROXY", proxies.as_str()), ("CC_EXECUTOR_CA_FILE", &file)];
    for word in ["run", "ps"] {
        let (_, stderr, code) = call(word, &format!("wss://{HOST}"), &env);
        assert_eq!((stderr.as_str(), code), ("", 0));
    }
    assert!(proxy.heads().iter().all(|head| head.starts_with("CONNECT cc-executor.test:443 HTTP/1.1\r\n")));
    // A gateway uses the proxy, too, for a backend with TLS.
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let Some(nginx) = Nginx::start("TLS through a proxy", backend.address, &[ca.certificate(&[HOST])]) else { return };
    let proxy = ConnectProxy::start(ProxyConduct::Forward(nginx.addresses[0]));
    let url = format!("https://{HOST}:8443");
    let mut command = binary();
    command.args(["serve", "--bind", "127.0.0.1:0", "--backend-url", &url, "--ca-file", &file]);
    command.env("CC_EXECUTOR_BACKEND_TOKEN", TOKEN).env("HTTPS_PROXY", proxy.url());
    let gateway = Service::spawn(command);
    gateway.wait_for_event("backend.up", 1);
    assert_eq!(gateway.run(&["--", "echo ok"]).stdout, b"ok\n");
    assert!(proxy.heads().iter().all(|head| head.starts_with("CONNECT cc-executor.test:8443 HTTP/1.1\r\n")));
}

#[test]
fn a_gateway_reaches_a_plain_backend_without_a_proxy() {
    let env = [("CC_EXECUTOR_TOKEN", TOKEN)];
    let mut command = binary();
    command.args(["backend", "--bind", "0.0.0.0:0"]).envs(env);
    let backend = Service::spawn(command);
    let proxy = ConnectProxy::start(ProxyConduct::Silent);
    let mut command = binary();
    let url = format!("http://0.0.0.0:{}", backend.address.port());
    command.args(["serve", "--bind", "127.0.0.1:0", "--backend-url", &url]).env("CC_EXECUTOR_BACKEND_TOKEN", TOKEN);
    let gateway = Service::spawn({
        command.env("http_proxy", proxy.url()).env("ALL_PROXY", proxy.url());
        command
    });
    gateway.wait_for_event("backend.up", 1);
    assert!(proxy.heads().is_empty());
}

#[test]
fn credentials_are_sent_to_the_proxy_and_never_shown() {
    let service = service();
    let expected = format!("Basic {}", BASE64_STANDARD.encode("me:p@ss:word"));
    let proxy = ConnectProxy::start(ProxyConduct::ForwardIf(service.address, expected));
    let url = format!("ws://{HOST}:8003");
    let with = |user: &str| call("run", &url, &[("http_proxy", &format!("http://{user}{}", proxy.address))]);
    assert_eq!(with("me:p%40ss%3Aword@"), ("ok\n".to_owned(), String::new(), 0));
    for (user, reason) in [
        ("", "demands a user name and a password (407), and none were sent; write them into the variable"),
        ("me:hush@", "refuses the user name and password in the variable (407); correct them"),
    ] {
        let (stdout, stderr, code) = with(user);
        assert_eq!((stdout.as_str(), code, stderr.lines().count()), ("", 69, 1), "{stderr}");
        let named = format!("the proxy {} (http_proxy) {reason}", proxy.address);
        assert!(stderr.contains(&named) && !stderr.contains("hush") && !stderr.contains("me:"), "{stderr}");
    }
}

#[test]
fn each_failure_of_a_proxy_is_named() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = |text: &str| ProxyConduct::Answer(text.into());
    for (conduct, reason) in [
        (answer("HTTP/1.1 403 Forbidden\r\n\r\n"), "refuses a tunnel to cc-executor.test:80: it answers 403 Forbidden"),
        (answer("HTTP/1.1 502 Bad\u{1b}[2J\r\n\r\n"), "it answers 502 Bad[2J; have it allow CONNECT"),
        (answer("SSH-2.0-x\r\n\r\n"), "does not answer as an HTTP proxy"),
        (answer(""), "closed the connection without an answer"),
        (ProxyConduct::Endless, "sent more than 16384 bytes before the end of its answer's head"),
        (ProxyConduct::Silent, "did not answer within 8 s"),
    ] {
        let proxy = ConnectProxy::start(conduct.clone());
        let (_, stderr, code) = call("run", &format!("ws://{HOST}"), &[("http_proxy", &proxy.url())]);
        assert_eq!((code, stderr.lines().count()), (69, 1), "{conduct:?} {stderr}");
        let named = format!("cc-executor: cannot reach ws://{HOST}/ws/mcp: the proxy {} (http_proxy) ", proxy.address);
        assert!(stderr.starts_with(&named) && stderr.contains(reason), "{stderr}");
    }
    let (_, stderr, code) = call("ps", &format!("ws://{HOST}"), &[("http_proxy", &format!("http://{dead}"))]);
    let named = format!("the proxy {dead} (http_proxy) cannot be reached: {dead}: Connection refused");
    assert!(code == 69 && stderr.contains(&named), "{stderr}");
    let (_, stderr, code) = call("ps", "wss://h", &[("https_proxy", "socks5://u:hush@h:1")]);
    assert!(code == 64 && stderr.contains("https_proxy names a proxy of the kind socks5://"), "{stderr}");
    assert!(!stderr.contains("hush"));
}

#[test]
fn exceptions_and_loopback_go_without_a_proxy() {
    let service = Service::spawn({
        let mut command = binary();
        command.args(["serve", "--bind", "0.0.0.0:0"]).env("CC_EXECUTOR_TOKEN", TOKEN);
        command
    });
    let proxy = ConnectProxy::start(ProxyConduct::Forward(service.address));
    let (url, port) = (proxy.url(), service.address.port());
    // An address that is not loopback and leads here.
    let other = format!("ws://0.0.0.0:{port}");
    assert_eq!(call("run", &other, &[("http_proxy", &url)]).2, 0);
    assert_eq!(proxy.heads().len(), 1);
    for (name, value) in [("NO_PROXY", "0.0.0.0"), ("no_proxy", "x,0.0.0.0/8"), ("NO_PROXY", "*")] {
        assert_eq!(call("run", &other, &[("http_proxy", &url), (name, value)]).2, 0, "{value}");
    }
    for host in ["127.0.0.1", "localhost"] {
        assert_eq!(call("run", &format!("ws://{host}:{port}"), &[("ALL_PROXY", &url)]).2, 0, "{host}");
    }
    assert_eq!(proxy.heads().len(), 1);
}
