//! Dockerfiles from tutorials. Their base images are replaced by others, mostly of busybox, with
//! programs that have the same names and record their calls.

use crate::isolated::{Kept, free_port, wait_for_page};
use crate::lab::{Lab, base, exists};

/// Creates an image of busybox with these programs, each a shell script.
fn stand_in(lab: &Lab, name: &str, programs: &[(&str, &str)]) {
    stand_in_on("busybox", lab, name, programs);
}

/// Creates an image as above, on another base image.
fn stand_in_on(base: &str, lab: &Lab, name: &str, programs: &[(&str, &str)]) {
    let mut file = format!("FROM {base}\n");
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
fn a_go_program_is_copied_from_a_stage_by_number() {
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
fn arguments_apply_before_and_after_from() {
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
fn cache_and_bind_mounts_work_and_a_missing_stage_is_reported() {
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
fn files_are_copied_directly_from_an_image() {
    let lab = Lab::new();
    lab.build("FROM busybox\nRUN mkdir -p /etc/nginx && echo conf > /etc/nginx/nginx.conf\n", &["-t", "nginx:latest"])
        .ok();
    let out = lab.build_local("FROM scratch\nCOPY --from=nginx:latest /etc/nginx/nginx.conf /nginx.conf\n", &[]);
    assert_eq!(std::fs::read_to_string(out.join("nginx.conf")).unwrap(), "conf\n");
}

#[test]
fn a_dotnet_program_is_published_and_run_by_another_image() {
    let lab = Lab::new();
    let dotnet = "case $1 in restore) mkdir -p obj && cp ./*.csproj obj/restored ;; \
                  publish) while [ $# -gt 0 ]; do [ \"$1\" = --output ] && out=$2; shift; done\n\
                  mkdir -p \"$out\" && cat ./*.cs obj/restored > \"$out/Site.dll\" ;; esac";
    stand_in(&lab, "dotnet:2.1-sdk", &[("dotnet", dotnet), ("only-in-sdk", "true")]);
    stand_in(&lab, "dotnet:2.1-runtime", &[("dotnet", "true")]);
    lab.write("NuGet.config", "").write("Site.csproj", "<Project/>").write("Program.cs", "class P {}");
    let file = "FROM dotnet:2.1-sdk AS build-env\n\nWORKDIR /Site\n\nCOPY NuGet.config ./\n\nCOPY Site.csproj ./\n\n\
                RUN dotnet restore\n\nCOPY . ./\n\n# build\n\
                RUN dotnet publish --configuration Release --output out --no-restore\n\n# runtime image\n\
                FROM dotnet:2.1-runtime\n\nWORKDIR /Site\n\nCOPY --from=build-env /Site/out ./\n\n\
                ENTRYPOINT [\"dotnet\", \"Site.dll\"]\n";
    let out = lab.build_local(file, &["-t", "site"]);
    assert_eq!(std::fs::read_dir(out.join("Site")).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(out.join("Site/Site.dll")).unwrap(), "class P {}<Project/>");
    assert!(!exists(out.join("usr/bin/only-in-sdk")));
    let json = lab.rbuild(["inspect", "site"]).ok().stdout;
    assert!(json.contains("\"Site.dll\"") && json.contains("\"WorkingDir\": \"/Site\""), "{json}");
    // A changed source does not invalidate the package restore: four of seven steps are cached.
    lab.write("Program.cs", "class Q {}");
    assert_eq!(lab.build(file, &["-t", "site"]).ok().steps(), (3, 5));
}

#[test]
fn a_server_is_built_in_one_stage_and_installed_in_another() {
    let lab = Lab::new();
    let made = "mkdir -p /usr/local/nginx/sbin /usr/local/nginx/conf && echo server > /usr/local/nginx/sbin/nginx \
                && touch /usr/local/nginx/conf/nginx.conf /usr/local/nginx/conf/nginx.conf.default";
    let curl = "mkdir nginx-1.22.0 && echo \"[ $# -gt 0 ] && touch configured\" > nginx-1.22.0/configure && \
                chmod +x nginx-1.22.0/configure && tar -czf nginx-1.22.0.tar.gz nginx-1.22.0 && rm -r nginx-1.22.0";
    let make = format!("[ -e configured ] || exit 1; [ \"$1\" != install ] || {{ {made}; }}");
    stand_in(&lab, "alpine:latest", &[APK, ("curl", curl), ("make", &make)]);
    let file = "FROM alpine:latest as relay_nginx\n\
                RUN mkdir -p /etc/apk /var/cache/apk && echo dl-cdn > /etc/apk/repositories && sed -i 's/dl-cdn/mirror/g' /etc/apk/repositories && \\\n    \
                apk add --no-cache gcc zlib-dev && \\\n    curl -O http://example.com/nginx-1.22.0.tar.gz && \\\n    \
                tar xzf nginx-1.22.0.tar.gz && \\\n    cd nginx-1.22.0 && \\\n    ./configure --prefix=/usr/local/nginx && \\\n    \
                make && make install && \\\n    rm -rf /usr/local/nginx/conf/*.default && \\\n    cd ../ && \\\n    \
                rm -rf nginx-1.22.0* /var/cache/apk/*\n\n\
                FROM alpine:latest as alpine_nginx\nRUN apk add --no-cache zlib-dev\n\
                COPY --from=relay_nginx /usr/local/nginx /usr/local/nginx\nEXPOSE 80\nEXPOSE 443\n\
                ENTRYPOINT [\"/usr/local/nginx/sbin/nginx\",\"-g\",\"daemon off;\"]\n";
    let out = lab.build_local(file, &["-t", "server"]);
    assert!(exists(out.join("usr/local/nginx/conf/nginx.conf")) && exists(out.join("usr/local/nginx/sbin/nginx")));
    assert!(!exists(out.join("usr/local/nginx/conf/nginx.conf.default")) && !exists(out.join("nginx-1.22.0")));
    let json = lab.rbuild(["inspect", "server"]).ok().stdout;
    assert!(json.contains("\"80/tcp\"") && json.contains("\"443/tcp\"") && json.contains("daemon off;"), "{json}");
}

/// A package manager whose compiler is large, the download of a source archive, and its build.
/// They replace programs of Debian, because the shell of busybox would prefer its own.
const SERVER_TOOLS: [(&str, &str); 3] = [
    ("apk", "case \"$*\" in *gcc*) head -c 8000000 /dev/urandom > /usr/lib/compiler ;; esac"),
    (
        "wget",
        "mkdir server-1.2 && printf '#!/bin/sh\\necho \"$1\" > prefix\\n' > server-1.2/configure && \
         chmod +x server-1.2/configure && tar -czf server-1.2.tar.gz server-1.2 && rm -r server-1.2",
    ),
    (
        "make",
        "prefix=$(sed s/--prefix=// prefix) || exit 1; [ \"$1\" = install ] || exit 0\n\
         mkdir -p $prefix/sbin $prefix/conf $prefix/html && touch $prefix/conf/server.conf.default && \
         echo 'a page of the server' > $prefix/html/index.html && cp /usr/lib/server.pl $prefix/sbin/server",
    ),
];

/// Serves one page, and shows in a header which program does, with which arguments.
const SERVER: &str = r#"#!/usr/bin/perl
use strict;
use IO::Socket::INET;
$SIG{TERM} = sub { exit 0 };
my $socket = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1) or die "cannot listen: $!";
open my $file, '<', '/usr/local/server/html/index.html' or die "cannot open the page: $!";
my $page = join '', <$file>;
while (my $client = $socket->accept) {
    while (<$client>) { last if /^\r?$/ }
    print $client "HTTP/1.0 200 OK\r\nServer: $0 @ARGV\r\n\r\n$page";
    close $client;
}
"#;

/// A server is built from its source. The image of two stages has neither the compiler nor the
/// source, and serves a page at a port of the machine.
#[test]
fn a_server_is_built_from_its_source_and_serves_a_page() {
    let lab = Lab::bare();
    lab.rbuild(["import", base("debian.tar").to_str().unwrap(), "debian"]).ok();
    lab.write("server.pl", SERVER).write("repositories", "http://dl-cdn.example/main\n");
    stand_in_on("debian", &lab, "tools", &SERVER_TOOLS);
    let file = "FROM tools\nCOPY --chmod=755 server.pl /usr/lib/\nCOPY repositories /etc/apk/\n";
    lab.build(file, &["-q", "-t", "alpine:latest"]).ok();
    let file = "FROM alpine:latest as made_server\n\
                RUN sed -i 's/dl-cdn.example/mirror.example/g' /etc/apk/repositories && \\\n    \
                apk add --no-cache gcc libc-dev zlib-dev make && \\\n    \
                wget -c http://example.com/server-1.2.tar.gz && \\\n    tar xf server-1.2.tar.gz && \\\n    \
                cd server-1.2 && \\\n    ./configure --prefix=/usr/local/server --with-tls && \\\n    \
                make && make install && \\\n    rm -rf /usr/local/server/conf/*.default && \\\n    cd ../ && \\\n    \
                rm -rf server-1.2* /var/cache/apk/*\n\n\
                FROM alpine:latest as small_server\n\
                RUN sed -i 's/dl-cdn.example/mirror.example/g' /etc/apk/repositories && \\\n    \
                apk add --no-cache zlib-dev && \\\n    rm -rf /var/cache/apk/*\n\
                COPY --from=made_server /usr/local/server /usr/local/server\nEXPOSE 80\nEXPOSE 443\n\
                ENTRYPOINT [\"/usr/local/server/sbin/server\",\"-g\",\"daemon off;\"]\n";
    lab.build(file, &["-t", "server:two"]).ok();
    lab.build(file, &["-t", "server:one", "--target", "made_server"]).ok();
    let size =
        |image: &str| -> u64 { lab.rbuild(["inspect", "-f", "{{.Size}}", image]).ok().stdout.trim().parse().unwrap() };
    let (one, two) = (size("server:one"), size("server:two"));
    assert!(one >= two + 8_000_000, "{one} and {two} bytes");
    let listed = lab.rbuild(["images", "--format", "{{.Tag}}", "server"]).ok().stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let (port, _kept) = (free_port(), Kept(&lab, "n"));
    lab.rbuild(["run", "--name", "n", "-d", "-p", &format!("{port}:80"), "server:two"]).ok();
    let page = wait_for_page(port);
    assert!(page.contains("\r\nServer: /usr/local/server/sbin/server -g daemon off;\r\n"), "{page}");
    assert!(page.ends_with("\r\n\r\na page of the server\n"), "{page}");
    let gone = "ls /usr/lib/compiler /server-1.2 /usr/local/server/conf/server.conf.default 2> /dev/null || echo gone";
    assert_eq!(lab.rbuild(["exec", "n", "sh", "-c", gone]).ok().stdout, "gone\n");
    assert_eq!(lab.rbuild(["stop", "n"]).ok().stdout, "n\n");
    assert_eq!(lab.rbuild(["inspect", "-f", "{{.State.ExitCode}}", "n"]).ok().stdout, "0\n");
}

#[test]
fn a_blog_is_generated_in_one_image_and_served_by_another() {
    let lab = Lab::new();
    let npm = "case \"$*\" in *-g*) printf '#!/bin/sh\\nmkdir -p public && cp source/*.md public/\\n' > /usr/bin/hexo && chmod +x /usr/bin/hexo ;; \
               *) mkdir -p node_modules && cp package.json node_modules/ ;; esac";
    stand_in(&lab, "node:18", &[("npm", npm)]);
    lab.build(
        "FROM busybox\nRUN mkdir -p /usr/share/nginx/html\nCMD [\"nginx\"]\n",
        &["-q", "-t", "nginx:1.24.0-alpine"],
    )
    .ok();
    lab.write("package.json", "{}").write("source/post.md", "# hi").write("verification.txt", "v");
    let file = "FROM node:18 AS builder\nMAINTAINER blog<blog@example.com>\nENV TZ=Asia/Shanghai\nWORKDIR /app\nCOPY . .\n\
                RUN npm install && \\\n    npm install hexo-cli -g && \\\n    hexo g && \\\n    cp verification.txt public/\n\n\
                FROM nginx:1.24.0-alpine\nMAINTAINER blog<blog@example.com>\nENV TZ=Asia/Shanghai\n\
                COPY --from=builder /app/public/ /usr/share/nginx/html/\n";
    let out = lab.build_local(file, &["-t", "blog"]);
    let html = out.join("usr/share/nginx/html");
    assert!(exists(html.join("post.md")) && exists(html.join("verification.txt")) && !exists(out.join("app")));
    let json = lab.rbuild(["inspect", "blog"]).ok().stdout;
    assert!(json.contains("TZ=Asia/Shanghai") && json.contains("\"Author\": \"blog<blog@example.com>\""), "{json}");
    // The same build in a single stage also ships node.
    let one = "FROM node:18\nMAINTAINER blog<blog@example.com>\nWORKDIR /app\nCOPY package*.json ./\n\
               RUN npm install && npm install hexo-cli -g\nCOPY . .\nRUN hexo g\n\
               RUN mkdir -p /var/www/html && cp -R public/* /var/www/html\nEXPOSE 80\nCMD [\"nginx\", \"-g\", \"daemon off;\"]\n";
    let out = lab.build_local(one, &[]);
    assert!(exists(out.join("var/www/html/post.md")) && exists(out.join("app/node_modules")));
}

#[test]
fn a_single_stage_builds_and_runs_a_program() {
    let lab = Lab::new();
    stand_in(&lab, "golang:1.9-alpine", &[APK, GO]);
    lab.write("app.go", "package main\n");
    let file = "FROM golang:1.9-alpine\n\nRUN apk --no-cache add git ca-certificates\n\nWORKDIR /go/src/hello/\n\nCOPY app.go .\n\n\
                RUN mkdir -p /root && go get -d -v example.com/driver \\\n  && CGO_ENABLED=0 go build -a -o app . \\\n  && cp /go/src/hello/app /root\n\n\
                WORKDIR /root/\n\nCMD [\"./app\"]\n";
    let out = lab.build_local(file, &[]);
    assert!(exists(out.join("root/app")) && exists(out.join("go/src/hello/app.go")));
}

/// The builder pattern from before multi-stage builds: build, copy the program out, build again.
/// `docker` is a link to rbuild.
#[test]
fn files_are_copied_out_of_a_container_of_another_build() {
    let lab = Lab::new();
    stand_in(&lab, "golang:1.9-alpine", &[APK, GO]);
    stand_in(&lab, "alpine:latest", &[APK]);
    lab.write("app.go", "package main\n");
    lab.write(
        "Dockerfile.build",
        "FROM golang:1.9-alpine\n\nRUN apk --no-cache add git\n\nWORKDIR /go/src/hello\n\nCOPY app.go .\n\n\
         RUN go get -d -v example.com/driver \\\n  && CGO_ENABLED=0 GOOS=linux go build -a -installsuffix cgo -o app .\n",
    );
    lab.write(
        "Dockerfile.copy",
        "FROM alpine:latest\n\nRUN apk --no-cache add ca-certificates\n\nWORKDIR /root/\n\nCOPY app .\n\nCMD [\"./app\"]\n",
    );
    lab.write(
        "build.sh",
        "#!/bin/sh\nset -e\necho Building hello:build\n\ndocker build -t go/hello:build . -f Dockerfile.build\n\n\
         docker create --name extract go/hello:build\ndocker cp extract:/go/src/hello/app ./app\ndocker rm -f extract\n\n\
         echo Building hello:2\n\ndocker build --no-cache -t go/hello:2 . -f Dockerfile.copy\nrm ./app\n",
    );
    let ran = lab.sh("mkdir path && ln -s $RB path/docker && PATH=$PWD/path:$PATH sh build.sh").ok();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("Building hello:build", "extract", "Building hello:2"));
    assert_eq!(lines[1].len(), 64);
    let out = lab.sh("$RB cp go/hello:2:/root/app - | tar -xO app").ok().stdout;
    assert_eq!(out, "#!/bin/sh\necho Hello World!\n");
    assert!(!exists(lab.ctx().join("app")));
}
