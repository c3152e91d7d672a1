package acmelab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Credentials of the storage account that Azurite has, which are public
// (https://learn.microsoft.com/azure/storage/common/storage-use-azurite#well-known-storage-account-and-key).
const (
	AzuriteAccount = "devstoreaccount1"
	AzuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Bounds of the process.
const (
	azuriteStart = 2 * time.Minute // seconds, but on a busy machine
	azuriteStop  = 5 * time.Second
)

// ErrNoAzurite says that the program azurite-blob is not installed.
var ErrNoAzurite = errors.New("azurite-blob is not installed (npm install azurite@3.37.0 and put node_modules/.bin into PATH, or its path into EDGE_AZURITE)")

// AzuriteOptions are the settings of an Azurite server.
type AzuriteOptions struct {
	Addr       string   // to listen on; "" is a free port of 127.0.0.1
	Containers []string // that are created
}

// Azurite is Microsoft's emulator of Azure Blob Storage, in memory, a process
// of its own behind a proxy that counts, delays and fails requests as S3 does.
// It checks signatures; its conditions, also those of deletes, are atomic.
type Azurite struct {
	Endpoint string // URL of the account

	scripted
	cmd    *exec.Cmd
	exited chan struct{} // closed then
}

// StartAzurite runs Azurite, which is found in PATH or by EDGE_AZURITE: the
// program, or a folder that has it. It is ErrNoAzurite when there is none. The
// caller must Close it.
func StartAzurite(o AzuriteOptions) (*Azurite, error) {
	program, err := findAzurite()
	if err != nil {
		return nil, err
	}
	a := &Azurite{exited: make(chan struct{})}
	backend, err := a.run(program)
	if err != nil {
		return nil, err
	}
	a.scripted = scripted{inner: proxyAzurite(backend), label: labelAzurite, refuse: refuseAzurite}
	if err := a.listen(o.Addr); err != nil {
		return nil, errors.Join(err, a.end())
	}
	a.Endpoint = a.front.url + "/" + AzuriteAccount
	for _, name := range o.Containers {
		if err := a.create(name); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = map[string]int{} // only those of the test count
	return a, nil
}

// NewAzurite is StartAzurite for a test, which it skips when Azurite is not
// installed; in CI (EDGE_CI=1) that is a failure.
func NewAzurite(tb testing.TB, containers ...string) *Azurite {
	tb.Helper()
	a, err := StartAzurite(AzuriteOptions{Containers: containers})
	if errors.Is(err, ErrNoAzurite) && os.Getenv("EDGE_CI") != "1" {
		tb.Skip(err)
	}
	return started(tb, a, err)
}

func findAzurite() (string, error) {
	const name = "azurite-blob"
	if at := os.Getenv("EDGE_AZURITE"); at != "" {
		for _, path := range []string{at, filepath.Join(at, name), filepath.Join(at, "node_modules", ".bin", name)} {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() { //nolint:gosec // the developer says where it is
				return path, nil
			}
		}
		return "", fmt.Errorf("%w: EDGE_AZURITE is %s", ErrNoAzurite, at)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", ErrNoAzurite
	}
	return path, nil
}

// run starts the process and returns its address.
func (a *Azurite) run(program string) (*url.URL, error) {
	a.cmd = exec.CommandContext(context.Background(), program, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", "0",
		"--skipApiVersionCheck", "--disableTelemetry")
	// A group of its own: the program may be a script that starts another.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.cmd.WaitDelay = azuriteStop
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	found := make(chan string, 1)
	go func() {
		defer close(found)
		for lines := bufio.NewScanner(out); lines.Scan(); { // to the end, or it would block
			if _, address, ok := strings.Cut(lines.Text(), "successfully listens on "); ok {
				found <- address
			}
		}
		_ = a.cmd.Wait() // "signal: killed"
		close(a.exited)
	}()
	timer := time.NewTimer(azuriteStart)
	defer timer.Stop()
	select {
	case address, ok := <-found:
		u, err := url.Parse(address)
		if ok && err == nil && u.Host != "" {
			return u, nil
		}
	case <-timer.C:
	}
	return nil, errors.Join(fmt.Errorf("acmelab: %s did not start", program), a.end())
}

// end kills the process and waits for it.
func (a *Azurite) end() error {
	_ = syscall.Kill(-a.cmd.Process.Pid, syscall.SIGKILL) // fails only when it is gone
	select {
	case <-a.exited:
		return nil
	case <-time.After(2 * azuriteStop):
		return errors.New("acmelab: azurite-blob does not end")
	}
}

// Close ends the server.
func (a *Azurite) Close() error { return errors.Join(a.scripted.Close(), a.end()) }

func (a *Azurite) create(name string) error {
	key, err := container.NewSharedKeyCredential(AzuriteAccount, AzuriteKey)
	if err != nil {
		return fmt.Errorf("acmelab: %w", err)
	}
	options := &container.ClientOptions{}
	options.Transport = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	client, err := container.NewClientWithSharedKeyCredential(a.Endpoint+"/"+name, key, options)
	if err != nil {
		return fmt.Errorf("acmelab: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), azuriteStart)
	defer cancel()
	if _, err := client.Create(ctx, nil); err != nil {
		return fmt.Errorf("acmelab: container %s: %w", name, err)
	}
	return nil
}

// StoreURL is the URL of a certificate store in the container name, below prefix. The
// store takes the key from the environment; see Env.
func (a *Azurite) StoreURL(name, prefix string) string {
	u := url.URL{Scheme: "azblob", Host: name, Path: "/" + prefix, RawQuery: url.Values{
		"account": {AzuriteAccount}, "endpoint": {a.Endpoint},
	}.Encode()}
	return u.String()
}

// Env is what a process needs in its environment to use the store.
func (*Azurite) Env() []string {
	return []string{"AZURE_STORAGE_KEY=" + AzuriteKey, "AZURE_STORAGE_CONNECTION_STRING="}
}

// proxyAzurite passes requests on as they are. Signatures cover the path and
// not the host.
func proxyAzurite(backend *url.URL) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = backend.Scheme, backend.Host },
		// Connections are not kept, so that none outlives a test.
		Transport:    &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { cut(w) },
	}
}

// labelAzurite leaves out the account: "PUT /container/blob", "GET
// /container?list".
func labelAzurite(r *http.Request) string {
	key := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/"+AzuriteAccount)
	if r.URL.Query().Get("comp") == "list" {
		key += "?list"
	}
	return key
}

func refuseAzurite(w http.ResponseWriter, _ *http.Request, status int) {
	code := map[int]string{
		http.StatusForbidden: "AuthorizationPermissionMismatch", http.StatusNotFound: "ContainerNotFound",
		http.StatusPreconditionFailed: "ConditionNotMet", http.StatusConflict: "BlobAlreadyExists", http.StatusServiceUnavailable: "ServerBusy",
	}[status]
	if code == "" {
		code = "InternalError"
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>acmelab was told to fail</Message></Error>`, code)
}
