package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// The variables that Azure's own tools read
// (https://learn.microsoft.com/azure/storage/blobs/authorize-data-operations-cli).
const (
	azureConnection = "AZURE_STORAGE_CONNECTION_STRING"
	azureAccount    = "AZURE_STORAGE_ACCOUNT"
	azureKey        = "AZURE_STORAGE_KEY"
)

// azureDriver keeps objects as block blobs in a container of Azure Blob
// Storage. A version is the ETag without its quotes, and so names one write,
// not a content.
type azureDriver struct {
	bucketURL

	account  string // "" is the environment's, or none is needed
	endpoint string // of the account; "" is made from its name
	pageSize int32
	http     *http.Client

	mu     sync.Mutex
	client *container.Client // made at first use
}

var (
	// https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
	containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	accountName   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
)

func openAzure(u *url.URL) (driver, string, error) {
	d := &azureDriver{pageSize: pageSize, http: newHTTPClient()}
	var err error
	d.bucketURL, err = parseBucket(u, bucketRules{
		noun: "container", names: containerName, set: d.set,
		secrets: "set " + azureKey + " or " + azureConnection + ", or use workload or managed identity",
		example: "azblob://container/prefix?account=acmeedge",
	})
	if err != nil {
		return nil, "", err
	}
	return d, d.String(), nil
}

// set applies one option of the URL.
func (d *azureDriver) set(option, value string) error {
	switch option {
	case "account":
		if !accountName.MatchString(value) {
			return &fault{message: "account is no name of a storage account", hint: "account=acmeedge"}
		}
		d.account = value
	case "endpoint":
		if err := checkEndpoint(value); err != nil {
			return err
		}
		d.endpoint = value
	default:
		return &fault{message: "unknown option", hint: "known are account and endpoint"}
	}
	return nil
}

// connect returns the client. It reads the environment but uses no network; an
// error is tried again at the next call. A connection string comes first, then
// a key, then the default chain of Azure: environment, workload identity,
// managed identity, the login of a developer's tools.
func (d *azureDriver) connect() (*container.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		return d.client, nil
	}
	client, err := d.dial()
	if err != nil {
		return nil, err
	}
	d.client = client
	return client, nil
}

func (d *azureDriver) dial() (*container.Client, error) {
	options := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: countedClient{d.http},
		Telemetry: policy.TelemetryOptions{ApplicationID: "edge"},
		Retry: policy.RetryOptions{
			MaxRetries: attempts - 1, TryTimeout: attemptTimeout, RetryDelay: minBackoff, MaxRetryDelay: maxBackoff,
		},
	}}
	if text := os.Getenv(azureConnection); text != "" {
		return d.dialConnection(text, options)
	}
	account := d.account
	if account == "" {
		account = os.Getenv(azureAccount)
	}
	target := strings.TrimRight(d.endpoint, "/")
	if target == "" {
		if account == "" {
			return nil, &fault{message: "no storage account is named", hint: "add ?account=… to the storage URL or set " + azureAccount}
		}
		target = "https://" + account + ".blob.core.windows.net"
	}
	target += "/" + d.bucket
	key := os.Getenv(azureKey)
	if key == "" {
		return d.dialIdentity(target, options)
	}
	if account == "" {
		return nil, &fault{message: azureKey + " belongs to no account", hint: "add ?account=… to the storage URL or set " + azureAccount}
	}
	shared, err := container.NewSharedKeyCredential(account, key)
	if err != nil { // which may quote the key
		return nil, &fault{message: azureKey + " is no key of a storage account", hint: "copy key1 or key2 of the account"}
	}
	client, err := container.NewClientWithSharedKeyCredential(target, shared, options)
	return client, d.explain(err)
}

func (d *azureDriver) dialConnection(text string, options *container.ClientOptions) (*container.Client, error) {
	for part := range strings.SplitSeq(text, ";") {
		name, account, _ := strings.Cut(part, "=")
		if d.account != "" && strings.TrimSpace(name) == "AccountName" && account != d.account {
			return nil, &fault{message: azureConnection + " is for another account than the storage URL", hint: "unset it, or correct account"}
		}
	}
	client, err := container.NewClientFromConnectionString(text, d.bucket, options)
	if err != nil { // which may quote the key
		return nil, &fault{message: azureConnection + " cannot be used", hint: "copy it from the access keys of the account"}
	}
	return client, nil
}

func (d *azureDriver) dialIdentity(target string, options *container.ClientOptions) (*container.Client, error) {
	if leaksTokens(target) || strings.HasPrefix(target, "http:") {
		return nil, &fault{message: "a token would be sent unencrypted", hint: "use an https endpoint, or set " + azureKey}
	}
	// Its retries are its own: the metadata server wants others.
	chain, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: d.http}})
	if err != nil {
		return nil, d.explain(&credentialsError{err})
	}
	client, err := container.NewClient(target, markedToken{chain}, options)
	return client, d.explain(err)
}

// markedToken lets explain recognise that there are no credentials.
type markedToken struct{ azcore.TokenCredential }

// GetToken implements azcore.TokenCredential.
func (m markedToken) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := m.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return token, &credentialsError{err}
	}
	return token, nil
}

func (d *azureDriver) close() error {
	d.http.CloseIdleConnections()
	return nil
}

func (d *azureDriver) get(ctx context.Context, key string) ([]byte, Version, error) {
	client, err := d.connect()
	if err != nil {
		return nil, "", err
	}
	out, err := client.NewBlobClient(d.name(key)).DownloadStream(ctx, nil)
	if err != nil {
		return nil, "", d.explain(err)
	}
	defer func() { _ = out.Body.Close() }()
	value, err := readObject(out.Body, out.ContentLength)
	if err != nil {
		return nil, "", d.explain(err)
	}
	v := etagVersion(out.ETag)
	if v == "" {
		return nil, "", errNoVersion("container", d.bucket, "an ETag")
	}
	return value, v, nil
}

func (d *azureDriver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	client, err := d.connect()
	if err != nil {
		return "", false, err
	}
	ctx, sent := counting(ctx)
	out, err := client.NewBlockBlobClient(d.name(key)).Upload(ctx, streaming.NopCloser(bytes.NewReader(value)),
		&blockblob.UploadOptions{AccessConditions: accessConditions(cond)})
	if err != nil {
		err = d.explain(err)
		unclear := sent.Load() > 1 || !isRefusal(err)
		if cond != (condition{}) && isAzureConflict(err) {
			err = ErrConflict
		}
		return "", unclear, err
	}
	v := etagVersion(out.ETag)
	if v == "" {
		return "", true, errNoVersion("container", d.bucket, "an ETag")
	}
	return v, false, nil
}

func accessConditions(c condition) *blob.AccessConditions {
	switch {
	case c.absent:
		return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}}
	case c.match != "":
		etag := azcore.ETag(`"` + string(c.match) + `"`)
		return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &etag}}
	}
	return nil
}

func etagVersion(etag *azcore.ETag) Version {
	if etag == nil {
		return ""
	}
	return Version(strings.Trim(string(*etag), `"`))
}

func (d *azureDriver) remove(ctx context.Context, key string, match Version) error {
	client, err := d.connect()
	if err != nil {
		return err
	}
	_, err = client.NewBlobClient(d.name(key)).Delete(ctx, &blob.DeleteOptions{
		DeleteSnapshots:  to.Ptr(blob.DeleteSnapshotsOptionTypeInclude), // or a blob with snapshots cannot be deleted
		AccessConditions: accessConditions(condition{match: match}),
	})
	err = ignoreMissing(d.explain(err))
	if match == "" || !hasStatus(err, http.StatusPreconditionFailed) {
		return err
	}
	// The condition does not hold for a blob that is gone either.
	if _, terminal, err := d.stat(ctx, key); errors.Is(err, fs.ErrNotExist) || err == nil && !terminal {
		return nil
	}
	return ErrConflict
}

func (d *azureDriver) list(ctx context.Context, dir, token string) (page, error) {
	client, err := d.connect()
	if err != nil {
		return page{}, err
	}
	options := &container.ListBlobsFlatOptions{Prefix: new(d.below(dir)), MaxResults: &d.pageSize}
	if token != "" {
		options.Marker = &token
	}
	out, err := client.NewListBlobsFlatPager(options).NextPage(ctx)
	if err != nil {
		return page{}, d.explain(err)
	}
	var p page
	if out.NextMarker != nil {
		p.next = *out.NextMarker
	}
	if out.Segment == nil {
		return p, nil
	}
	for _, item := range out.Segment.BlobItems {
		if o, ok := d.describe(item); ok {
			p.objects = append(p.objects, o)
		}
	}
	return p, nil
}

// describe returns what ListVersions says about a blob. Accounts with a
// hierarchical namespace list directories too, as empty blobs.
func (d *azureDriver) describe(item *container.BlobItem) (Object, bool) {
	if item == nil || item.Name == nil || item.Properties == nil {
		return Object{}, false
	}
	key, ok := d.key(*item.Name)
	p := item.Properties
	if !ok || p.ResourceType != nil && *p.ResourceType == "directory" {
		return Object{}, false
	}
	o := Object{Key: key, Version: etagVersion(p.ETag)}
	if p.ContentLength != nil {
		o.Size = *p.ContentLength
	}
	if p.LastModified != nil {
		o.Modified = *p.LastModified
	}
	return o, true
}

func (d *azureDriver) stat(ctx context.Context, key string) (Object, bool, error) {
	client, err := d.connect()
	if err != nil {
		return Object{}, false, err
	}
	out, err := client.NewBlobClient(d.name(key)).GetProperties(ctx, nil)
	err = d.explain(err)
	if ignoreMissing(err) != nil {
		return Object{}, false, err
	}
	if err != nil || isFolder(out.Metadata) {
		return statDirectory(ctx, d, key)
	}
	o := Object{Key: key, Version: etagVersion(out.ETag)}
	if out.ContentLength != nil {
		o.Size = *out.ContentLength
	}
	if out.LastModified != nil {
		o.Modified = *out.LastModified
	}
	return o, true, nil
}

// isFolder recognises a directory of a hierarchical namespace.
func isFolder(metadata map[string]*string) bool {
	for name, value := range metadata {
		if strings.EqualFold(name, "hdi_isfolder") && value != nil && *value == "true" {
			return true
		}
	}
	return false
}
