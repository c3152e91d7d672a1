package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"golang.org/x/sync/singleflight"
)

const (
	defaultChain = "default" // value of credentials=

	gcsScope       = "https://www.googleapis.com/auth/devstorage.read_write"
	maxCredentials = 1 << 20 // bytes of a file with credentials
)

// googleKinds are the types of credentials that a file may hold. They are the
// operator's own; still, only what Google documents for machines is taken.
var googleKinds = []google.CredentialsType{
	google.ServiceAccount, google.AuthorizedUser, google.ExternalAccount, google.ImpersonatedServiceAccount,
}

// tokens hands out access tokens. Google's package asks for them under a lock,
// without a way to give up, and looks for a metadata server with timeouts of
// its own; tokens lets a caller leave whose ctx has ended while the one search
// or request that is under way goes on. Each of its steps is bounded.
type tokens struct {
	path   string // of a file, or defaultChain
	client *http.Client
	flight singleflight.Group
	source oauth2.TokenSource // owned by fetch; nil until found

	mu   sync.Mutex
	last *oauth2.Token
}

// find looks for credentials: in a file, or along the default chain, which is
// GOOGLE_APPLICATION_CREDENTIALS (also for workload identity federation), the
// file of gcloud, the metadata server of GCE, GKE and Cloud Run
// (https://cloud.google.com/docs/authentication/application-default-credentials).
func (t *tokens) find() (oauth2.TokenSource, error) {
	// The context of a source is only a carrier of its client.
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, t.client)
	if t.path != defaultChain {
		return credentialsFile(ctx, t.path)
	}
	found, err := google.FindDefaultCredentials(ctx, gcsScope)
	if err != nil {
		return nil, err
	}
	return found.TokenSource, nil
}

func credentialsFile(ctx context.Context, path string) (oauth2.TokenSource, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, &fault{fmt.Sprintf("file %s with credentials cannot be read: %s", path, innermost(err)), "check credentials in the storage URL", err}
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxCredentials))
	if err != nil {
		return nil, &fault{fmt.Sprintf("file %s with credentials cannot be read: %s", path, innermost(err)), "check credentials in the storage URL", err}
	}
	// Errors of JSON may quote the key, so they are not shown.
	var kind struct {
		Type google.CredentialsType `json:"type"`
	}
	broken := &fault{message: fmt.Sprintf("file %s holds no credentials of Google", path), hint: "download the key of a service account, or a configuration of workload identity federation"}
	if json.Unmarshal(text, &kind) != nil || !slices.Contains(googleKinds, kind.Type) {
		return nil, broken
	}
	found, err := google.CredentialsFromJSONWithType(ctx, text, kind.Type, gcsScope)
	if err != nil {
		return nil, broken
	}
	return found.TokenSource, nil
}

// get returns a token that is valid for some more seconds.
func (t *tokens) get(ctx context.Context) (*oauth2.Token, error) {
	t.mu.Lock()
	last := t.last
	t.mu.Unlock()
	if last.Valid() {
		return last, nil
	}
	select {
	case r := <-t.flight.DoChan("", t.fetch):
		if r.Err != nil {
			return nil, &credentialsError{withoutBody(r.Err)}
		}
		return r.Val.(*oauth2.Token), nil //nolint:forcetypeassert // fetch returns nothing else
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (t *tokens) fetch() (any, error) {
	if t.source == nil {
		source, err := t.find()
		if err != nil {
			return nil, err
		}
		t.source = source
	}
	token, err := t.source.Token()
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = token
	return token, nil
}

// withoutBody drops the answer of a token server from err, but for its code
// (RFC 6749, 5.2).
func withoutBody(err error) error {
	r, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok || r.Response == nil {
		return err
	}
	var answer struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(r.Body, &answer) // "" is an answer without a code
	return fmt.Errorf("the token server answered %d %s", r.Response.StatusCode, oneLine(answer.Error))
}

// leaksTokens reports whether endpoint would be sent tokens in the clear,
// beyond this machine.
func leaksTokens(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil || endpoint == "" || u.Scheme == "https" {
		return err != nil
	}
	ip := net.ParseIP(u.Hostname())
	return !strings.EqualFold(u.Hostname(), "localhost") && (ip == nil || !ip.IsLoopback())
}
