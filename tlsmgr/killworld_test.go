package tlsmgr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// killWorld is a storage with three replicas, of which the first is the one that
// orders and meets its fate.
type killWorld struct {
	fate
	lab     *acmelab.Lab
	hosts   []string
	url     string // of the storage, for the test
	dir     string
	roots   *x509.CertPool
	seed    string // serial of what is renewed; "" at a first issue
	victim  *child
	others  [2]*child
	vault   *vault.Vault
	started chan struct{} // the victim is there to be killed
	lead    func()        // the victim has the lease, or met its fate: the others run
	caught  chan struct{} // closed when the victim met its fate
	release chan struct{} // closed when a stopped victim may go on
	resume  func()
	met     atomic.Bool
	at      atomic.Pointer[acmelab.Request] // where
	mine    *acmelab.Tap                    // of the victim
	theirs  *acmelab.Tap
	last    atomic.Int64 // time of the last request that found something to do

	mu        sync.Mutex
	committed map[string]bool // serials written to the storage
	trace     []string        // requests
}

var killSerial atomic.Int32

func newKillWorld(t *testing.T, lab *acmelab.Lab, f fate) *killWorld {
	t.Helper()
	n := killSerial.Add(1)
	w := &killWorld{
		fate: f, lab: lab, dir: quickDir(t), roots: x509.NewCertPool(), started: make(chan struct{}),
		caught: make(chan struct{}), release: make(chan struct{}), committed: map[string]bool{},
	}
	w.lead = sync.OnceFunc(func() {
		for _, c := range w.others {
			c.run()
		}
	})
	w.resume = sync.OnceFunc(func() { close(w.release) })
	zone := fmt.Sprintf("w%d.example.test", n)
	w.hosts = []string{zone, "*." + zone, "far.away." + zone}
	w.roots.AppendCertsFromPEM(lab.CA.RootsPEM)
	w.mine = acmelab.NewTap(t, lab, acmelab.TapOptions{Skip: w.byTheClock, Hook: w.ofVictim})
	w.theirs = acmelab.NewTap(t, lab, acmelab.TapOptions{Skip: w.byTheClock, Hook: w.note})
	t.Cleanup(w.resume)
	t.Cleanup(func() {
		if t.Failed() {
			w.mu.Lock()
			defer w.mu.Unlock()
			t.Logf("requests:\n%s", strings.Join(w.trace, "\n"))
		}
	})
	prefix := fmt.Sprintf("w%d", n)
	mine, theirs := w.mine.StoreURL("certs", prefix), w.theirs.StoreURL("certs", prefix)
	w.url = lab.S3.StoreURL("certs", prefix)
	if f.storage == "file" {
		w.url = "file://" + filepath.Join(w.dir, "storage")
		mine, theirs = w.url, w.url
	}
	w.open(t)
	if f.renewal {
		w.plant(t)
	}
	for n := range w.others {
		w.others[n] = spawn(t, w.file(t, "others", w.theirs, theirs), childCA+"="+w.theirs.CA, childLease+"="+killTTL.String(), childHeld+"=1")
	}
	for _, c := range w.others {
		c.listening(t)
	}
	w.victim = spawn(t, w.file(t, "victim", w.mine, mine), childCA+"="+w.mine.CA, childLease+"="+killTTL.String())
	close(w.started)
	return w
}

// quickDir is a directory in memory where there is one: a storage on disk waits
// for the disk at each write, and a world of two dozen writers for all of them.
func quickDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "edge") //nolint:usetesting // TempDir is on the disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *killWorld) open(t *testing.T) {
	t.Helper()
	s, err := store.Open(t.Context(), w.url, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	w.vault = vault.New(s, vault.Options{})
}

// plant stores a certificate that is due for renewal.
func (w *killWorld) plant(t *testing.T) {
	t.Helper()
	ca := newTestCA(t)
	w.roots.AddCert(ca.cert)
	from := time.Now().Add(-66 * 24 * time.Hour) // of 90: no third is left, and more than a quarter
	names := slices.Sorted(slices.Values(w.hosts))
	old := ca.certificate(t, killBundle, config.P256, from, from.Add(90*24*time.Hour), names...)
	w.seed = old.serial()
	old.object.Issuer, old.object.Directory = "lab", w.lab.CA.Directory
	old.object.Renewal = &vault.Renewal{Checked: time.Now(), Next: time.Now().Add(time.Hour)} // nothing to ask a CA that has not issued it
	if _, err := vault.Save(t.Context(), w.vault, killBundle, old.object, ""); err != nil {
		t.Fatal(err)
	}
}

// file writes the configuration of a replica that goes by way of tap.
func (w *killWorld) file(t *testing.T, name string, tap *acmelab.Tap, storage string) string {
	t.Helper()
	writeFile(t, filepath.Join(w.dir, "ca.pem"), string(w.lab.CA.APICertPEM))
	writeFile(t, filepath.Join(w.dir, "tsig"), w.lab.DNS.Key.Secret)
	path := filepath.Join(w.dir, name+".yaml")
	hosts, err := json.Marshal(w.hosts)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, fmt.Sprintf(`version: 1
listeners: {https: {address: "127.0.0.1:0"}}
storage: %q
providers: {dns: {rfc2136: {server: %q, key_name: %q, key: %q}}}
issuers:
  lab:
    acme: {directory: %q, email: ops@example.test, ca: %q}
    challenge: {providers: [dns], resolvers: [%q], authoritative: [%q]}
certificate_defaults: {issuers: [lab]}
routes:
  - {host: %s, endpoints: ["http://127.0.0.1:1"]}
`, storage, tap.DNS, w.lab.DNS.Key.Name, "file:"+filepath.Join(w.dir, "tsig"),
		w.lab.CA.Directory, filepath.Join(w.dir, "ca.pem"), tap.DNS, tap.DNS, hosts))
	return path
}

// leaseWrite is what a write of the lease of the bundle says.
type leaseWrite struct {
	Name, State string
	Beat        int
}

// lease is the lease that r writes; false when it does not write one.
func leaseOfRequest(r acmelab.Request) (l leaseWrite, ok bool) {
	ok = r.Part == acmelab.PartS3 && r.Op == "PUT" && strings.Contains(r.Target, "/locks/") && json.Unmarshal(r.Body, &l) == nil
	return l, ok
}

func (w *killWorld) byTheClock(r acmelab.Request) bool {
	l, ok := leaseOfRequest(r)
	return strings.HasSuffix(r.Target, "?list") || strings.Contains(r.Target, "/"+string(vault.Replicas)+"/") || ok && l.Beat > 0 && l.State == "held"
}

// ofVictim lets the victim's fate happen.
func (w *killWorld) ofVictim(r acmelab.Request) bool {
	w.note(r)
	if l, ok := leaseOfRequest(r); ok && r.Handled && l.Name == leaseOf(killBundle) || r.Part == acmelab.PartCA {
		w.lead() // with a storage on disk it is the first request that is seen
	}
	if w.k == 0 || r.N != w.k || r.Handled != w.after || w.met.Swap(true) {
		return true
	}
	w.at.Store(&r)
	<-w.started
	defer w.lead()
	if !w.stop {
		w.victim.kill()
		close(w.caught)
		return false
	}
	w.halt()
	close(w.caught)
	w.lead()
	<-w.release
	return true
}

// halt stops the victim, but not in the middle of a write to a storage on disk:
// it would keep the directory locked, as the kernel knows no lease.
func (w *killWorld) halt() {
	for {
		_ = w.victim.cmd.Process.Signal(syscall.SIGSTOP)
		w.victim.stopped()
		if w.storage == "s3" || w.unlocked() {
			return
		}
		_ = w.victim.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(time.Millisecond)
	}
}

// unlocked reports whether the storage on disk can be locked soon: the others
// may write to it too.
func (w *killWorld) unlocked() bool {
	f, err := os.OpenFile(filepath.Join(w.dir, "storage", ".edge", "guard"), os.O_RDWR, 0)
	if err != nil {
		return true // nothing was written yet
	}
	defer func() { _ = f.Close() }()
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			return true
		}
	}
	return false
}

// note takes note of activity, and of certificates in the storage.
func (w *killWorld) note(r acmelab.Request) (pass bool) {
	if r.N > 0 {
		w.last.Store(time.Now().UnixNano())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Handled && r.N > 0 && len(w.trace) < 1000 {
		w.trace = append(w.trace, fmt.Sprintf("%s %s %d", time.Now().Format("05.000"), r, r.Status))
	}
	var o vault.Certificate
	if r.Part == acmelab.PartS3 && r.Op == "PUT" && r.Status == 200 && strings.Contains(r.Target, "/"+string(vault.Certificates)+"/") && json.Unmarshal(r.Body, &o) == nil {
		if c, err := newStored(&o); err == nil {
			w.committed[c.serial()] = true
		}
	}
	return true
}

// run brings the world to its end and returns how many requests the victim has
// sent for the issuance.
func (w *killWorld) run(t *testing.T) (requests int) {
	t.Helper()
	watched := w.watch(t)
	begin := time.Now()
	serial := w.agree(t)
	select {
	case <-w.caught:
	default: // the request never came, or nothing was to happen
		w.victim.listening(t)
	}
	w.eventually(t, "traces", w.traces)
	if w.stop && w.met.Load() {
		if rest := killTTL + killTTL/2 - time.Since(begin); rest > 0 { // also when the heir had nothing to wait for
			time.Sleep(rest)
		}
		w.resume()
		signal(t, w.victim, syscall.SIGCONT)
		w.victim.listening(t)
		w.eventually(t, "the one that was stopped", func() error { return w.serves(w.victim, serial) })
	}
	w.eventually(t, "rest", func() error {
		if idle := time.Since(time.Unix(0, w.last.Load())); idle < killQuiet {
			return fmt.Errorf("a request %s ago", idle)
		}
		return w.traces()
	})
	for _, c := range w.others {
		if err := w.serves(c, serial); err != nil {
			t.Error(err)
		}
	}
	if failure := watched(); failure != "" {
		t.Error(failure)
	}
	w.judge(t)
	if at := w.at.Load(); at != nil {
		t.Logf("%v; %d orders, certificates %v, %s in all", at, len(w.orders()), slices.Collect(maps.Keys(w.committed)), time.Since(begin).Round(time.Millisecond))
	}
	return w.mine.Count()
}

// agree waits until the others serve one new certificate.
func (w *killWorld) agree(t *testing.T) (serial string) {
	t.Helper()
	w.eventually(t, "the new certificate", func() error {
		first, err := w.shake(w.others[0])
		if err != nil {
			return err
		}
		if first == w.seed {
			return errors.New("the old certificate is served")
		}
		serial = first
		return w.serves(w.others[1], first)
	})
	return serial
}

// serves is nil when c serves the certificate with this serial for every name.
func (w *killWorld) serves(c *child, serial string) error {
	got, err := w.shake(c)
	if err == nil && got != serial {
		err = fmt.Errorf("process %d serves %s, want %s", c.cmd.Process.Pid, got, serial)
	}
	return err
}

// shake is the serial of what c serves.
func (w *killWorld) shake(c *child) (string, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 5 * time.Second},
		Config:    &tls.Config{RootCAs: w.roots, ServerName: w.hosts[0], CurvePreferences: []tls.CurveID{tls.X25519}},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	leaf := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	return (&certificate{tls: &tls.Certificate{Leaf: leaf}}).serial(), nil
}

// traces is nil when nothing is left of any order.
func (w *killWorld) traces() error {
	if left := w.records(); len(left) > 0 {
		return fmt.Errorf("TXT records at %s", strings.Join(left, ", "))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	journal := map[string]any{}
	raw, err := w.vault.Store().Load(ctx, vault.Orders.Key(killBundle))
	if err == nil {
		err = json.Unmarshal(raw, &journal)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, idle := range []string{"format", "id", "owner", "updated_at", "noticed"} {
		delete(journal, idle)
	}
	for field, value := range journal {
		if text := fmt.Sprint(value); text != "0" && text != "" && text != "0001-01-01T00:00:00Z" {
			return fmt.Errorf("the journal is not idle: %s is %s", field, text)
		}
	}
	objects, err := w.vault.Store().ListVersions(ctx, vault.Challenges.Dir())
	if err == nil && len(objects) > 0 {
		err = fmt.Errorf("%d answers to challenges", len(objects))
	}
	return err
}

func (w *killWorld) records() (left []string) {
	for _, name := range w.lab.DNS.TXTNames() {
		if strings.HasSuffix(name, "."+w.hosts[0]+".") {
			left = append(left, name)
		}
	}
	return left
}

func (w *killWorld) orders() (mine [][]string) {
	for _, names := range w.lab.CA.Ordered() {
		if slices.Contains(names, w.hosts[0]) {
			mine = append(mine, names)
		}
	}
	return mine
}

// judge looks at what must hold at the end.
func (w *killWorld) judge(t *testing.T) {
	t.Helper()
	if n := len(w.orders()); n > 2 || !w.met.Load() && n != 1 {
		t.Errorf("%d orders", n)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.storage == "s3" && len(w.committed) != 1 {
		t.Errorf("committed: %v, want one certificate", slices.Collect(maps.Keys(w.committed)))
	}
	if err := w.traces(); err != nil {
		t.Error(err)
	}
}

// watch shakes hands with one of the others, all the time. stop ends it and says
// what went wrong.
func (w *killWorld) watch(t *testing.T) (stop func() (failure string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan string, 1)
	go func() {
		ticker := time.NewTicker(time.Second / killRate)
		defer ticker.Stop()
		var seen []string // serials
		if w.seed != "" {
			seen = []string{w.seed}
		}
		failure := ""
		for n := 0; failure == ""; n++ {
			select {
			case <-ctx.Done():
				result <- failure
				return
			case <-ticker.C:
			}
			serial, err := w.shake(w.others[0])
			switch {
			case err != nil && len(seen) == 0: // not issued yet
			case err != nil:
				failure = fmt.Sprintf("handshake %d failed: %v", n, err)
			case len(seen) > 0 && seen[len(seen)-1] == serial:
			case slices.Contains(seen, serial):
				failure = fmt.Sprintf("handshake %d saw %s again, after %s", n, serial, seen[len(seen)-1])
			case len(seen) > 0 && seen[len(seen)-1] != w.seed:
				failure = fmt.Sprintf("handshake %d saw one more certificate, %s after %s", n, serial, seen[len(seen)-1])
			default:
				seen = append(seen, serial)
			}
		}
		<-ctx.Done()
		result <- failure
	}()
	t.Cleanup(cancel)
	return func() string {
		cancel()
		return <-result
	}
}

// eventually waits until ok is nil.
func (w *killWorld) eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(killLimit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %s after %s: %v; %d orders", w.at.Load(), what, killLimit, err, len(w.orders()))
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// listening waits for the address of a child.
func (c *child) listening(t *testing.T) {
	t.Helper()
	if c.addr == "" {
		_, c.addr, _ = strings.Cut(c.until(t, stepListening, 1)[0], ": ")
	}
}

// stopped waits until the process has stopped (proc_pid_stat(5), field 3).
func (c *child) stopped() {
	path := "/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/stat"
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(path)
		if _, rest, ok := strings.Cut(string(stat), ") "); err != nil || ok && strings.HasPrefix(rest, "T") {
			return
		}
	}
}
