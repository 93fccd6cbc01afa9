//! Dockerfiles as tutorials have them, on stand-ins of their base images: small systems with programs of the same
//! names that leave a mark.

use crate::lab::{Lab, exists};

/// An image of busybox with these programs, each a shell script.
fn stand_in(lab: &Lab, name: &str, programs: &[(&str, &str)]) {
    let mut file = String::from("FROM busybox\n");
    for (program, script) in programs {
        file.push_str(&format!("COPY --chmod=755 <<'EOF' /usr/bin/{program}\n#!/bin/sh\n{script}\nEOF\n"));
    }
    lab.build(&file, &["-q", "-t", name]).ok();
}

const APK: (&str, &str) = ("apk", "echo \"$@\" >> /etc/apk-was-here");
/// `go build -o FILE …` writes a program; `go get` and `go mod` note that they ran.
const GO: (&str, &str) = (
    "go",
    "case $1 in build) while [ $# -gt 0 ]; do [ \"$1\" = -o ] && out=$2; shift; done\n\
     printf '#!/bin/sh\\necho Hello World!\\n' > \"${out:-app}\"; chmod +x \"${out:-app}\" ;;\n\
     *) mkdir -p /go && echo \"$@\" >> /go/log ;; esac",
);

#[test]
fn a_go_program_in_two_stages_by_number() {
    let lab = Lab::new();
    stand_in(&lab, "golang:1.9-alpine", &[APK, GO]);
    stand_in(&lab, "alpine:latest", &[APK]);
    lab.write("app.go", "package main\n");
    let file = "FROM golang:1.9-alpine as builder\n\nRUN apk --no-cache add git\n\nWORKDIR /go/src/hello/\n\n\
                RUN go get -d -v example.com/driver\n\nCOPY app.go .\n\n\
                RUN CGO_ENABLED=0 GOOS=linux go build -a -installsuffix cgo -o app .\n\n\
                FROM alpine:latest as prod\n\nRUN apk --no-cache add ca-certificates\n\nWORKDIR /root/\n\n\
                COPY --from=0 /go/src/hello/app .\n\nCMD [\"./app\"]\n";
    let out = lab.build_local(file, &[]);
    assert!(exists(out.join("root/app")) && !exists(out.join("go")));
    let out = lab.build_local(file, &["--target", "builder"]);
    assert!(exists(out.join("go/src/hello/app.go")) && !exists(out.join("root/app")));
}

#[test]
fn arguments_before_and_after_from_and_scratch() {
    let lab = Lab::new();
    stand_in(&lab, "golang:1.11", &[GO]);
    stand_in(&lab, "golang:1.12", &[GO, ("newer", "true")]);
    lab.write("main.go", "package main\n");
    let file = "ARG TAGS=1.11\nFROM golang:$TAGS AS builder\nARG GOOS=linux\nARG CGO_ENABLED=0\nWORKDIR /go/src/app\n\
                COPY main.go .\nRUN go get .\n\nRUN go build -a -tags netgo -ldflags '-w -s -extldflags \"-static\"'\n\n\
                FROM scratch\nCOPY --from=builder /go/src/app/app .\nENTRYPOINT [\"/app\"]\nCMD [\"--help\"]\n";
    let out = lab.build_local(file, &[]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    let out = lab.build_local(file, &["--build-arg", "TAGS=1.12", "--target", "builder"]);
    assert!(exists(out.join("usr/bin/newer")));
    lab.build(file, &["--build-arg", "TAGS=9"]).fails(1, &["golang:9", "Dockerfile:2:6"]);
}

#[test]
fn cache_and_bind_mounts_and_a_stage_that_does_not_exist() {
    let lab = Lab::new();
    stand_in(&lab, "golang:1.20-alpine", &[GO]);
    stand_in(&lab, "golang:1.19-alpine", &[GO]);
    lab.write("go.mod", "module x\n").write("go.sum", "").write("cmd/client/main.go", "package main\n");
    let file = "ARG GO_VERSION=1.20\nFROM golang:${GO_VERSION}-alpine AS base\nWORKDIR /src\n\
                RUN --mount=type=cache,target=/go/pkg/mod/ \\\n    --mount=type=bind,source=go.sum,target=go.sum \\\n\
                \x20   --mount=type=bind,source=go.mod,target=go.mod \\\n    go mod download -x\n\n\
                FROM base AS build-client\nRUN --mount=type=cache,target=/go/pkg/mod/ \\\n    --mount=type=bind,target=. \\\n\
                \x20   test -f cmd/client/main.go && go build -o /bin/client ./cmd/client\n\n\
                FROM scratch AS client\nCOPY --from=build-client /bin/client /bin/\n\n\
                FROM scratch AS server\nCOPY --from=build-server /bin/server /bin/\nENTRYPOINT [ \"/bin/server\" ]\n";
    lab.write("Dockerfile", file);
    lab.build(file, &[]).fails(1, &["`build-server`", "did you mean `build-client`"]);
    lab.rbuild(["build", "--output=bin", "--target=client", "--build-arg", "GO_VERSION=1.19"]).ok();
    assert!(lab.ctx().join("bin/bin/client").is_file());
    let out = lab.build_local(file, &["--target=build-client"]);
    let left: Vec<_> = std::fs::read_dir(out.join("src")).unwrap().collect();
    assert!(left.is_empty(), "mount points are left: {left:?}");
}

#[test]
fn a_copy_straight_from_an_image() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN mkdir -p /etc/nginx && echo conf > /etc/nginx/nginx.conf\n", &["-t", "nginx:latest"])
        .ok();
    let out = lab.build_local("FROM scratch\nCOPY --from=nginx:latest /etc/nginx/nginx.conf /nginx.conf\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("nginx.conf")).unwrap(), "conf\n");
}
