package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/store/storetest"
)

// childEnv makes the test binary another process that uses the store: the
// name of a job and the URL.
const childEnv = "EDGE_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if storetest.Contend() {
		return
	}
	if job, rawURL, ok := strings.Cut(os.Getenv(childEnv), " "); ok {
		if err := child(job, rawURL); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	environment()
	goleak.VerifyTestMain(m)
}

// environment hides the machine's own settings of the clouds. None of the credentials
// may show up in an error, see wantText.
func environment() {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret-value", "AWS_SESSION_TOKEN": "",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
		"AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "",
		"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": "", "CLOUDSDK_CONFIG": "/dev/null", "GCE_METADATA_HOST": "127.0.0.1:1",
		"AZURE_STORAGE_ACCOUNT": "", "AZURE_STORAGE_CONNECTION_STRING": "", "AZURE_STORAGE_KEY": acmelab.AzuriteKey,
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	for _, name := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"} {
		if err := os.Unsetenv(name); err != nil { // empty ones count as given
			panic(err)
		}
	}
}

// start runs job in another process. Its standard output is out.
func start(t *testing.T, job, rawURL string) (cmd *exec.Cmd, out io.Reader, stderr *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+job+" "+rawURL)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	out, err = cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out, stderr
}

func child(job, rawURL string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := store.Open(ctx, rawURL, store.Options{LeaseTTL: childTTL})
	if err != nil {
		return err
	}
	defer s.Close()
	switch job {
	case "count":
		for range childCounts {
			if err := count(ctx, s); err != nil {
				return err
			}
		}
		return nil
	case "probe":
		return s.Probe(ctx)
	case "write": // until killed
		for i := 0; ; i++ {
			value := bytes.Repeat([]byte{byte('a' + i%26)}, 64<<10)
			if err := s.Store(ctx, "certs/a", value); err != nil {
				return err
			}
			if i == 0 {
				fmt.Println("ready")
			}
		}
	case "hold": // until killed
		l, err := s.Acquire(ctx, "x")
		if err != nil {
			return err
		}
		fmt.Println("ready")
		<-ctx.Done()
		return l.Release(ctx)
	}
	return fmt.Errorf("no job %q", job)
}

const (
	childCounts = 100
	childTTL    = 400 * time.Millisecond
)

// count adds one to the number at "counter".
func count(ctx context.Context, s *store.Store) error {
	for {
		value, v, err := s.LoadVersion(ctx, "counter")
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(value))
		if err != nil {
			return err
		}
		if _, err = s.Swap(ctx, "counter", []byte(strconv.Itoa(n+1)), v); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// newStore opens rawURL until the test ends.
func newStore(t *testing.T, rawURL string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), rawURL, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// wantText checks that err has one line with all of texts and none of secrets.
func wantText(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("got no error, want %q", texts)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q, want %q in it", err, text)
		}
	}
	for _, secret := range []string{"\n", "test-key", "test-secret-value", "hunter2", acmelab.AzuriteKey} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q must not be in %q", secret, err)
		}
	}
}
