package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/rogpeppe/go-internal/testscript"
	"go.yaml.in/yaml/v4"

	"edge/internal/acmelab"
)

// A stage is the lab of one script: a CA, its staging CA, a DNS server and a
// bucket. The script finds them in its environment; see labConfig.
type stage struct {
	lab     *acmelab.Lab
	staging *acmelab.CA
}

type stageKey struct{}

// labConfig is the routes.yaml of a script that has none of its own.
const labConfig = `version: 1
listeners: {https: {address: "127.0.0.1:0"}, http: {address: "127.0.0.1:0", redirect: https}}
storage: "${STORAGE}"
providers: {dns: {rfc2136: {server: "${DNS}", key_name: "${TSIG_NAME}", key: env:TSIG}}}
issuers:
  lab:
    acme: {directory: "${CA}", staging: "${STAGING_CA}", email: ops@example.test, ca: ca.pem}
    challenge: {providers: [dns], resolvers: ["${DNS}"], authoritative: ["${DNS}"]}
control: {socket: edge.sock}
routes:
  - {host: [example.test, "*.example.test"], endpoints: ["http://127.0.0.1:1"]}
`

// The commands that work on certificates, storage and DNS, as a person types
// them, against a CA, a DNS server and a bucket that are real.
func TestScriptsOnALab(t *testing.T) {
	t.Parallel()
	path := binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/lab",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", env.Getenv("PATH")+":"+dirOf(path))
			return newStage(env)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"expand": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args {
					ts.Check(expand(ts.MkAbs(name), ts.Getenv))
				}
			},
			"orders": ordersCmd,
			"record": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(stageOf(ts).lab.DNS.Add(strings.Join(args, " ")))
			},
			"txt": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := strings.Join(stageOf(ts).lab.DNS.TXTNames(), " "); got != strings.Join(args, " ") {
					ts.Fatalf("TXT records %q, want %q", got, args)
				}
			},
			"publish": func(ts *testscript.TestScript, _ bool, args []string) {
				for line := range strings.Lines(ts.ReadFile(args[0])) {
					if line = strings.TrimSpace(line); !strings.HasPrefix(line, ";") {
						ts.Check(stageOf(ts).lab.DNS.Add(line))
					}
				}
			},
			"ready":  readyCmd,
			"secret": secretCmd,
			"mint":   mintCmd,
			"sha256": sha256Cmd,
			"caddy":  caddyCmd,
		},
		RequireExplicitExec: true,
	})
}

func newStage(env *testscript.Env) error {
	lab, err := acmelab.Start(acmelab.Options{
		DNS: acmelab.DNSOptions{Zones: []string{"test", "example.test", "auth.test"}},
		CA:  acmelab.CAOptions{Blocked: []string{"blocked.test"}}, // Pebble 2.10.1 panics at names with fewer labels
	})
	if err != nil {
		return err
	}
	env.Defer(func() { _ = lab.Close() })
	staging, err := acmelab.StartCA(acmelab.CAOptions{DNS: lab.DNS.Addr})
	if err != nil {
		return err
	}
	env.Defer(func() { _ = staging.Close() })
	env.Values[stageKey{}] = &stage{lab, staging}
	for _, kv := range append(lab.S3.Env(), "STORAGE="+lab.S3.StoreURL("certs", "prod"), "OTHER="+lab.S3.StoreURL("certs", "other"),
		"CADDY="+lab.S3.StoreURL("certs", "caddy"),
		"DNS="+lab.DNS.Addr, "TSIG_NAME="+lab.DNS.Key.Name, "TSIG="+lab.DNS.Key.Secret,
		"CA="+lab.CA.Directory, "STAGING_CA="+staging.Directory, "EDGE_CONFIG=routes.yaml",
		"KEY1=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "KEY2=AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=") {
		k, v, _ := strings.Cut(kv, "=")
		env.Setenv(k, v)
	}
	roots := append(bytes.Clone(lab.CA.APICertPEM), staging.APICertPEM...)
	if err := os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), roots, 0o600); err != nil {
		return err
	}
	name := filepath.Join(env.WorkDir, "routes.yaml")
	if _, err := os.Stat(name); err != nil {
		if err := os.WriteFile(name, []byte(labConfig), 0o600); err != nil {
			return err
		}
	}
	return expand(name, env.Getenv)
}

func stageOf(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

// expand replaces ${NAME} in a file by the script's environment.
func expand(name string, get func(string) string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(os.Expand(string(text), get)), 0o600)
}

// ordersCmd checks how many orders the CA, and the staging CA, have taken:
// orders 1 0.
func ordersCmd(ts *testscript.TestScript, _ bool, args []string) {
	s := stageOf(ts)
	for n, ca := range []*acmelab.CA{s.lab.CA, s.staging} {
		if want, err := strconv.Atoi(args[n]); err != nil || ca.Orders() != want {
			ts.Fatalf("orders %q at CA %d, want %s", ca.Ordered(), n, args[n])
		}
	}
}

// readyCmd waits until an edge of the configuration in force is ready.
func readyCmd(ts *testscript.TestScript, _ bool, _ []string) {
	for begin := time.Now(); time.Since(begin) < patience; time.Sleep(50 * time.Millisecond) {
		if ts.Exec("edge", "status", "--ready") == nil {
			return
		}
	}
	ts.Fatalf("edge does not become ready")
}

// mintCmd makes a self-signed pair: mint CHAIN KEY LEFT NAME…, with LEFT percent
// of its lifetime left.
func mintCmd(ts *testscript.TestScript, _ bool, args []string) {
	left, err := strconv.Atoi(args[2])
	ts.Check(err)
	chain, key, err := mint(left, args[3:]...)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), chain, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), key, 0o600))
}

func mint(left int, names ...string) (chain, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	const life = 100 * 24 * time.Hour
	end := time.Now().Add(time.Duration(left)*life/100 + time.Hour)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: end.Add(-life), NotAfter: end, DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	sec1, err := x509.MarshalECPrivateKey(key) // as Caddy does
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), nil
}

// sha256Cmd puts the fingerprint of the first certificate of a file into the
// environment: sha256 NAME FILE. With ! it must be another one already there.
func sha256Cmd(ts *testscript.TestScript, neg bool, args []string) {
	block, _ := pem.Decode([]byte(ts.ReadFile(args[1])))
	if block == nil {
		ts.Fatalf("%s holds no PEM", args[1])
	}
	sum := sha256.Sum256(block.Bytes)
	text, was := hex.EncodeToString(sum[:]), ts.Getenv(args[0])
	if was != "" && (was == text) == neg {
		ts.Fatalf("fingerprint %s, was %s", text, was)
	}
	ts.Setenv(args[0], text)
}

// caddyCmd puts a pair where Caddy keeps certificates of an ACME directory:
// caddy DIR CHAIN KEY NAME.
func caddyCmd(ts *testscript.TestScript, _ bool, args []string) {
	directory := ts.Getenv("CA")
	issuer := (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()
	meta := fmt.Sprintf(`{"sans": [%q], "issuer_data": {"url": "https://ca.test/cert/1", "ca": %q}}`, args[3], directory)
	for key, data := range map[string]string{
		certmagic.StorageKeys.SiteCert(issuer, args[3]):       ts.ReadFile(args[1]),
		certmagic.StorageKeys.SitePrivateKey(issuer, args[3]): ts.ReadFile(args[2]),
		certmagic.StorageKeys.SiteMeta(issuer, args[3]):       meta,
	} {
		name := filepath.Join(ts.MkAbs(args[0]), filepath.FromSlash(key))
		ts.Check(os.MkdirAll(filepath.Dir(name), 0o700))
		ts.Check(os.WriteFile(name, []byte(data), 0o600))
	}
}

// secretCmd reads a manifest as kubectl does and checks that it is the Secret of
// a certificate: secret FILE NAME NAMESPACE CHAIN.
func secretCmd(ts *testscript.TestScript, _ bool, args []string) {
	var secret struct {
		APIVersion string `yaml:"apiVersion"`
		Kind, Type string
		Metadata   struct{ Name, Namespace string }
		Data       map[string]string
	}
	ts.Check(yaml.Unmarshal([]byte(ts.ReadFile(args[0])), &secret))
	if secret.APIVersion != "v1" || secret.Kind != "Secret" || secret.Type != "kubernetes.io/tls" || secret.Metadata.Name != args[1] || secret.Metadata.Namespace != args[2] {
		ts.Fatalf("%+v", secret)
	}
	chain, err := base64.StdEncoding.DecodeString(secret.Data["tls.crt"])
	ts.Check(err)
	key, err := base64.StdEncoding.DecodeString(secret.Data["tls.key"])
	ts.Check(err)
	if _, err := tls.X509KeyPair(chain, key); err != nil || len(secret.Data) != 2 {
		ts.Fatalf("data %d: %v", len(secret.Data), err)
	}
	if string(chain) != ts.ReadFile(args[3]) {
		ts.Fatalf("another chain:\n%s", chain)
	}
}
