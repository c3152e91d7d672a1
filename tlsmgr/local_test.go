package tlsmgr

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edge/config"
)

// startFiles runs a Manager that serves a file certificate.
func startFiles(t *testing.T, f *config.CertificateFile) *replica {
	t.Helper()
	r := start(t, &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}},
		Certificates: map[string]*config.Certificate{"file": {Name: "file", File: f}},
	}, nil)
	return r
}

// served is the serial that clients of a.test see.
func served(t *testing.T, m *replica, ca *testCA) string {
	t.Helper()
	state, err := shake(t, m.Manager, client(ca, "a.test"))
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].SerialNumber.String()
}

func TestReplacedFilesAreServed(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	m := startFiles(t, ca.files(t, dir, "a.test"))
	old := served(t, m, ca)
	wait(t, func() bool { // written again and again: the watch may begin after the first time
		ca.files(t, dir, "a.test")
		select {
		case e := <-m.events:
			return e.Step == StepLoaded
		case <-time.After(time.Second):
			return false
		}
	})
	if got := served(t, m, ca); got == old {
		t.Error("the old certificate still serves")
	}
	if s := m.one(t); s.Source != "file" || s.State != StateValid || s.Issuer != "" || s.Serial == "" {
		t.Errorf("status %+v", s)
	}
}

func TestBusyDirectoryDoesNotPutOffTheLook(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	m := startFiles(t, ca.files(t, dir, "a.test"))
	served(t, m, ca)
	tick := time.NewTicker(fileSettle / 10)
	defer tick.Stop()
	deadline := time.Now().Add(filePoll / 2)
	for looks := 0; looks < 3; <-tick.C { // the first may have been due anyway
		ca.files(t, dir, "a.test")
		select {
		case <-m.events:
			looks++
		default:
			if time.Now().After(deadline) {
				t.Fatalf("%d looks while the directory is busy", looks)
			}
		}
	}
}

func TestKubernetesSwapOfTheDataLinkIsSeen(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	swap := func(n string) {
		data := filepath.Join(dir, n)
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		ca.files(t, data, "a.test")
		if err := errors.Join(os.Symlink(n, filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1")
	for _, f := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	m := startFiles(t, &config.CertificateFile{
		Certificate: filepath.Join(dir, "tls.crt"), PrivateKey: config.Secret{Ref: "file:" + filepath.Join(dir, "tls.key")},
	})
	old := served(t, m, ca)
	n := 1
	wait(t, func() bool {
		n++
		swap(".." + strings.Repeat("x", n))
		select {
		case e := <-m.events:
			return e.Step == StepLoaded
		case <-time.After(time.Second):
			return false
		}
	})
	if got := served(t, m, ca); got == old {
		t.Error("the old certificate still serves")
	}
}

func TestBadPairKeepsTheLastGoodOneAndWarnsOnce(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	f := ca.files(t, dir, "a.test")
	m := startFiles(t, f)
	old := served(t, m, ca)
	_, otherKey := ca.issue(t, config.P256, time.Now(), time.Now().Add(time.Hour), "a.test")
	writeFile(t, filepath.Join(dir, "tls.key"), otherKey)

	st, bad := m.state.Load(), map[string]complaint{}
	for n, again := range []bool{true, false, false} { // patience, the warning, silence
		if got := m.reloadFiles(t.Context(), st, bad); got != again {
			t.Errorf("look %d: again %v, want %v", n, got, again)
		}
	}
	if got := served(t, m, ca); got != old {
		t.Error("the last good pair does not serve any more")
	}
	if text := bad["file"].text; !strings.Contains(text, "private key does not match") || !strings.Contains(text, "PEM private key)") {
		t.Errorf("the warning says %q", text)
	}
	ca.files(t, dir, "a.test")
	m.reloadFiles(t.Context(), st, bad)
	if got := served(t, m, ca); got == old || len(bad) != 0 {
		t.Error("the repaired pair does not serve")
	}
}

func TestFilesOfAnOlderConfigurationDoNotComeBack(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	m := New(Options{Logger: (&logs{}).logger()})
	cfg := &config.Config{
		Listeners:    map[string]*config.Listener{"https": {Name: "https"}},
		Certificates: map[string]*config.Certificate{"file": {Name: "file", File: ca.files(t, dir, "a.test")}},
	}
	commit(t, m, cfg)
	old := m.state.Load()
	next := *cfg
	next.Certificates = map[string]*config.Certificate{}
	commit(t, m, &next)
	ca.files(t, dir, "a.test")
	m.reloadFiles(context.Background(), old, map[string]complaint{})
	if _, err := shake(t, m, &tls.Config{ServerName: "a.test", RootCAs: ca.pool()}); err == nil {
		t.Error("a removed file certificate serves again")
	}
}

func TestFileNamesAreReadForThePlan(t *testing.T) {
	ca := newTestCA(t)
	cfg := &config.Config{Certificates: map[string]*config.Certificate{
		"good": {Name: "good", File: ca.files(t, t.TempDir(), "B.test", "*.a.test")},
		"bad":  {Name: "bad", File: &config.CertificateFile{Certificate: t.TempDir(), PrivateKey: config.Secret{Ref: "env:X"}}},
	}}
	names, err := FileNames(cfg)
	if got := strings.Join(names["good"], " "); got != "*.a.test b.test" {
		t.Errorf("names %q", got)
	}
	if err == nil || !strings.Contains(err.Error(), "certificates.bad: ") {
		t.Errorf("error %v, want one about the bad pair", err)
	}
}

func TestCertificateWithoutNamesIsRefused(t *testing.T) {
	ca := newTestCA(t)
	_, err := readPair("file", ca.files(t, t.TempDir()))
	if err == nil || !strings.Contains(err.Error(), "neither DNS names nor addresses (clients look at subject alternative names only)") {
		t.Errorf("got %v", err)
	}
}
