// Package deploy_test checks the files of this folder with the programs that
// will read them.
package deploy_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxBinary is what a release may have. More by a third at once means that the
// linker keeps all exported methods, as it does when text/template is reachable.
const maxBinary = 24 << 20

// need finds a program that this test cannot do without: absent, the test is
// skipped with its reason, and fails where everything must be there.
func need(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("EDGE_CI") == "1" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func TestTheUnitIsCleanForSystemd(t *testing.T) {
	analyze := need(t, "systemd-analyze")
	unit, err := os.ReadFile("edge.service")
	if err != nil {
		t.Fatal(err)
	}
	// The binary is not installed here; any other stands in for it.
	here := strings.ReplaceAll(string(unit), "/usr/local/bin/edge", "/bin/true")
	path := filepath.Join(t.TempDir(), "edge.service")
	if err := os.WriteFile(path, []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// The unit calls edge only in ways that edge knows.
func TestTheUnitCallsCommandsThatExist(t *testing.T) {
	unit, err := os.ReadFile("edge.service")
	if err != nil {
		t.Fatal(err)
	}
	calls := regexp.MustCompile(`(?m)^Exec\w+=/usr/local/bin/edge (\w+) --config /etc/edge/routes.yaml$`).FindAllStringSubmatch(string(unit), -1)
	if len(calls) != 2 {
		t.Fatalf("found %d calls of edge, want run and reload", len(calls))
	}
	for _, call := range calls {
		out, err := exec.CommandContext(t.Context(), "go", "run", "edge/cmd/edge", call[1], "--help").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--config") {
			t.Errorf("edge %s --help: %v\n%s", call[1], err, out)
		}
	}
}

// The image is built on an empty one, so the binary must need nothing. The
// build line is taken from the Dockerfile itself.
func TestTheImagesBinaryIsStaticAndSmall(t *testing.T) {
	if os.Getenv("EDGE_CI") != "1" {
		t.Skip("a release build of its own takes a minute; EDGE_CI=1 runs it")
	}
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`CGO_ENABLED=0 go build .*-o /out/edge ./cmd/edge`).FindString(string(dockerfile))
	if line == "" {
		t.Fatal("no build line in the Dockerfile")
	}
	path := filepath.Join(t.TempDir(), "edge")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "/out/edge", path, 1))
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "VERSION=v9.9.9")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MiB", float64(info.Size())/(1<<20))
	if info.Size() > maxBinary {
		t.Errorf("the binary has %d bytes, want at most %d", info.Size(), maxBinary)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary wants a dynamic loader")
		}
	}
	out, err := exec.CommandContext(t.Context(), path, "version").Output()
	if err != nil || !strings.Contains(string(out), "v9.9.9") {
		t.Errorf("version: %q, %v; want the release in it", out, err)
	}
}
