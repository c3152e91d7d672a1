// Command stage is the demo proper: it starts everything that edge talks to and
// edge itself, and tells what happens. Package demo builds and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

const (
	zone     = "demo.test"
	chatHost = "llama.models." + zone // under the wildcard
	patience = time.Minute            // for the certificate and the chat
)

func main() {
	dir := flag.String("dir", ".", "`folder` that has the binary edge; files go there too")
	once := flag.Bool("once", false, "exit after the first chat")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *dir, *once, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, once bool, out io.Writer) (err error) {
	say := newNarrator(out)
	say.title("edge demo: from names to tokens, on real parts")
	d := &demo{say: say, dir: dir}
	defer func() { err = errors.Join(err, d.close()) }()

	limited, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %v", patience))
	defer cancel()
	if err := d.startLab(); err != nil {
		return err
	}
	if err := d.startEdge(limited); err != nil {
		return err
	}
	if err := d.chat(limited); err != nil {
		return err
	}
	if once {
		return nil
	}
	d.invite()
	select {
	case <-ctx.Done():
		say.step("stopping")
		return nil
	case <-d.edge.Done():
		return errors.New("edge has ended")
	}
}

// demo is what runs.
type demo struct {
	say    *narrator
	dir    string
	lab    *acmelab.Lab
	models []*modelserver.Server
	edge   *edgetest.Process
	addr   string // of edge's TLS listener
}

func (d *demo) close() error {
	var errs []error
	if d.edge != nil {
		errs = append(errs, d.edge.Close())
	}
	for _, m := range d.models {
		errs = append(errs, m.Close())
	}
	if d.lab != nil {
		errs = append(errs, d.lab.Close())
	}
	return errors.Join(errs...)
}

// startLab starts everything that edge talks to.
func (d *demo) startLab() (err error) {
	d.lab, err = acmelab.Start(acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{zone, "test"}}})
	if err != nil {
		return err
	}
	d.say.step("CA          Pebble              %s", d.lab.CA.Directory)
	d.say.step("DNS         zone %s      %s (TSIG-signed updates)", zone, d.lab.DNS.Addr)
	d.say.step("bucket      S3                  %s", d.lab.S3.Endpoint)
	for _, name := range []string{"model-a", "model-b"} {
		m, err := modelserver.Start(modelserver.Options{Name: name, Script: modelserver.Script{Tokens: strings.SplitAfter(words, " "), Delay: 60 * time.Millisecond}})
		if err != nil {
			return err
		}
		d.models = append(d.models, m)
		d.say.step("%s     OpenAI chat         %s", name, m.URL)
	}
	for name, data := range map[string][]byte{"ca-api.pem": d.lab.CA.APICertPEM, "roots.pem": d.lab.CA.RootsPEM, "env": []byte(strings.Join(d.env(), "\n") + "\n")} {
		if err := os.WriteFile(filepath.Join(d.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(d.path("routes.yaml"), []byte(d.routes()), 0o600)
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// routes is the configuration that edge runs with.
func (d *demo) routes() string {
	return fmt.Sprintf(`version: 1
listeners:
  https: {address: "127.0.0.1:0"}
  http: {address: "127.0.0.1:0", redirect: https}
storage: %q
providers:
  dns: {rfc2136: {server: %q, key_name: %q, key: "env:DEMO_TSIG"}}
issuers:
  pebble:
    acme: {directory: %q, email: ops@%s, ca: %q}
    challenge: {type: dns-01, providers: [dns], resolvers: [%q], authoritative: [%q]}
pools:
  llama:
    endpoints: [%q, %q]
    balance: least_requests
    health: {path: /health}
routes:
  - {name: chat, match: {host: ["*.models.%s", %q], path: /v1}, pool: llama}
control: {socket: %q}
observability: {log: {format: json, access: false}}
`, d.lab.S3.StoreURL("certs", "demo"), d.lab.DNS.Addr, d.lab.DNS.Key.Name,
		d.lab.CA.Directory, zone, d.path("ca-api.pem"), d.lab.DNS.Addr, d.lab.DNS.Addr,
		d.models[0].URL, d.models[1].URL, zone, "models."+zone, d.path("control.sock"))
}

// env holds the secrets of the lab for edge, and for commands that work on the
// storage as edge does. None of them needs quotes in a shell.
func (d *demo) env() []string { return append(d.lab.S3.Env(), "DEMO_TSIG="+d.lab.DNS.Key.Secret) }

// startEdge runs the binary and tells what its log says of the certificate.
func (d *demo) startEdge(ctx context.Context) (err error) {
	d.say.step("edge run    two names, one wildcard: *.models.%s and models.%s", zone, zone)
	d.edge, err = edgetest.Start(edgetest.Options{
		Binary: d.path("edge"), Config: d.path("routes.yaml"), Log: d.say.edge,
		Env: d.env(),
	})
	if err != nil {
		return err
	}
	if err := d.edge.WaitReady(ctx); err != nil {
		return err
	}
	d.addr, err = d.edge.Addr(ctx, "https")
	return err
}
