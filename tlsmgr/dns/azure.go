package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	"edge/config"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/dns/armdns"
	"github.com/libdns/libdns"
)

// azureDNS is Azure DNS, whose unit is the record set. Each has an ETag, and a
// write goes through only as long as that is the one that was read (If-Match) or
// there is no such set (If-None-Match): a compare-and-swap, so no value of
// another writer is lost and no lease is needed.
//
// To add is tried on the guess that nobody else has values at the name. So an
// order of 25 names costs 25 requests to add, 50 to delete, eight at once: at
// 200 ms a request 0.8 s and 1.6 s (TestRequestsOfABundle).
type azureDNS struct {
	api   *armdns.RecordSetsClient
	group string // resource group
}

// useAzure prepares Azure DNS with a client secret, or with what the machine
// has: environment, workload identity, managed identity.
func (p *provider) useAzure(c *config.AzureDNS, hc HTTPClient, pc *pace) error {
	switch {
	case c.SubscriptionID == "":
		return errors.New("azure subscription_id is empty (az account show prints it)")
	case c.ResourceGroup == "":
		return errors.New("azure resource_group is empty (it is that of the DNS zone)")
	}
	hc = httpClient(hc)
	options := policy.ClientOptions{Cloud: azureCloud(), Transport: hc}
	credential, err := p.azureCredential(c, options)
	if err != nil {
		return err
	}
	options.Transport = paced{hc, pc}
	options.Retry.MaxRetries = -1 // paced does that
	api, err := armdns.NewRecordSetsClient(c.SubscriptionID, credential, &arm.ClientOptions{
		ClientOptions: options, DisableRPRegistration: true, // which asks for rights that nothing else needs
	})
	if err != nil {
		return fmt.Errorf("azure: %s", oneLine(err.Error()))
	}
	p.kind = "azure"
	p.backend = azureDNS{api, c.ResourceGroup}
	p.explain = explainAzure
	return nil
}

// azureCloud is the cloud of AZURE_AUTHORITY_HOST, which China and the
// government of the United States have their own of.
func azureCloud() cloud.Configuration {
	switch host := os.Getenv("AZURE_AUTHORITY_HOST"); {
	case strings.Contains(host, "login.chinacloudapi.cn"), strings.Contains(host, "login.partner.microsoftonline.cn"):
		return cloud.AzureChina
	case strings.Contains(host, "login.microsoftonline.us"):
		return cloud.AzureGovernment
	}
	return cloud.AzurePublic
}

// azureCredential is the SDK's default chain without the programs of developers
// that it would start.
func (p *provider) azureCredential(c *config.AzureDNS, options policy.ClientOptions) (azcore.TokenCredential, error) {
	if c.ClientSecret.Ref != "" {
		secret, err := c.ClientSecret.Load()
		switch {
		case err != nil:
			return nil, fmt.Errorf("azure client_secret: %w", err)
		case c.TenantID == "" || c.ClientID == "":
			return nil, errors.New("azure client_secret needs tenant_id and client_id (az ad sp create-for-rbac prints all three)")
		}
		p.secrets = []string{secret}
		credential, err := azidentity.NewClientSecretCredential(c.TenantID, c.ClientID, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options})
		if err != nil {
			return nil, fmt.Errorf("azure: %s", oneLine(err.Error()))
		}
		return credential, nil
	}
	var chain []azcore.TokenCredential
	if credential, err := azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: options}); err == nil {
		chain = append(chain, credential) // else its variables are not there
	}
	if credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: options, ClientID: c.ClientID, TenantID: c.TenantID,
	}); err == nil {
		chain = append(chain, credential)
	}
	managed := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
	if c.ClientID != "" {
		managed.ID = azidentity.ClientID(c.ClientID)
	}
	credential, err := azidentity.NewManagedIdentityCredential(managed)
	if err != nil {
		return nil, fmt.Errorf("azure: %s", oneLine(err.Error()))
	}
	all, err := azidentity.NewChainedTokenCredential(append(chain, credential), nil)
	if err != nil {
		return nil, fmt.Errorf("azure: %s", oneLine(err.Error()))
	}
	return all, nil
}

// AppendRecords adds the values that are not there.
func (a azureDNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, a.each(ctx, zone, records, func(ctx context.Context, name string, ours []string, try int) error {
		if try == 0 {
			return a.create(ctx, zone, name, ours)
		}
		set, err := a.get(ctx, zone, name)
		if err != nil || set == nil {
			if err == nil {
				err = a.create(ctx, zone, name, ours)
			}
			return err
		}
		return a.replace(ctx, zone, name, *set, with(valuesOf(*set), ours))
	})
}

// DeleteRecords deletes the values that are there.
func (a azureDNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, a.each(ctx, zone, records, func(ctx context.Context, name string, ours []string, _ int) error {
		set, err := a.get(ctx, zone, name)
		if err != nil || set == nil {
			return err
		}
		left := without(valuesOf(*set), ours)
		if len(left) > 0 {
			return a.replace(ctx, zone, name, *set, left)
		}
		_, err = a.api.Delete(ctx, a.group, bare(zone), name, armdns.RecordTypeTXT, &armdns.RecordSetsClientDeleteOptions{IfMatch: set.Etag})
		return changed(err)
	})
}

// each changes the record set of each name, read afresh as often as needed. The
// names that do is given are those of the API: below the zone, or "@".
func (a azureDNS) each(ctx context.Context, zone string, records []libdns.Record,
	do func(ctx context.Context, name string, ours []string, try int) error,
) error {
	all := setsOf(zone, records)
	names := sortedKeys(all)
	for _, name := range names {
		if !isPlain(name) {
			return fmt.Errorf("name %q cannot be a record of Azure DNS", bare(name))
		}
	}
	return forNames(names, apiParallel, func(name string) error {
		return settle(ctx, func(try int) error { return do(ctx, libdns.RelativeName(name, zone), all[name], try) })
	})
}

// azureAbove are the codes of 404 that say that something above the record set
// is missing.
var azureAbove = []string{"ParentResourceNotFound", "ResourceGroupNotFound", "SubscriptionNotFound"}

// get reads a record set; nil is that there is none.
func (a azureDNS) get(ctx context.Context, zone, name string) (*armdns.RecordSet, error) {
	out, err := a.api.Get(ctx, a.group, bare(zone), name, armdns.RecordTypeTXT, nil)
	said, refused := errors.AsType[*azcore.ResponseError](err)
	switch {
	case refused && said.StatusCode == http.StatusNotFound && !slices.Contains(azureAbove, said.ErrorCode):
		return nil, nil
	case err != nil:
		return nil, err
	case out.Properties == nil || out.Etag == nil:
		return nil, errors.New("the record set has no ETag")
	}
	return &out.RecordSet, nil
}

// create makes a record set that must not be there.
func (a azureDNS) create(ctx context.Context, zone, name string, values []string) error {
	set := armdns.RecordSet{Properties: &armdns.RecordSetProperties{TTL: new(int64(recordTTL.Seconds())), TxtRecords: textOf(values)}}
	_, err := a.api.CreateOrUpdate(ctx, a.group, bare(zone), name, armdns.RecordTypeTXT, set,
		&armdns.RecordSetsClientCreateOrUpdateOptions{IfNoneMatch: new("*")})
	return changed(err)
}

// replace writes the values into a record set that was read, and keeps what
// else it has, as TTL and metadata.
func (a azureDNS) replace(ctx context.Context, zone, name string, set armdns.RecordSet, values []string) error {
	if slices.Equal(values, valuesOf(set)) {
		return nil
	}
	kept := map[string]*armdns.TxtRecord{}
	for _, r := range set.Properties.TxtRecords {
		kept[textIn(r)] = r
	}
	records := textOf(values)
	for i, v := range values {
		if r := kept[v]; r != nil {
			records[i] = r
		}
	}
	next := armdns.RecordSet{Properties: &armdns.RecordSetProperties{
		TTL: set.Properties.TTL, Metadata: set.Properties.Metadata, TargetResource: set.Properties.TargetResource, TxtRecords: records,
	}}
	_, err := a.api.CreateOrUpdate(ctx, a.group, bare(zone), name, armdns.RecordTypeTXT, next,
		&armdns.RecordSetsClientCreateOrUpdateOptions{IfMatch: set.Etag})
	return changed(err)
}

// changed makes a failed condition errChanged.
func changed(err error) error {
	if said, ok := errors.AsType[*azcore.ResponseError](err); ok && said.StatusCode == http.StatusPreconditionFailed {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

func textOf(values []string) []*armdns.TxtRecord {
	out := make([]*armdns.TxtRecord, 0, len(values))
	for _, v := range values {
		out = append(out, &armdns.TxtRecord{Value: []*string{new(v)}})
	}
	return out
}

// textIn joins the strings of one record.
func textIn(r *armdns.TxtRecord) string {
	var b strings.Builder
	for _, s := range r.Value {
		if s != nil {
			b.WriteString(*s)
		}
	}
	return b.String()
}

func valuesOf(set armdns.RecordSet) []string {
	out := make([]string, 0, len(set.Properties.TxtRecords))
	for _, r := range set.Properties.TxtRecords {
		out = append(out, textIn(r))
	}
	return out
}

// azureCode finds the code and first sentence of Microsoft Entra.
var azureCode = regexp.MustCompile(`AADSTS\d+: [^.\r\n"\\]*`)

// explainAzure reads refusals of Azure Resource Manager and of Microsoft Entra.
func explainAzure(err error) refusal {
	const rights = "the least that edge needs on the zone: Microsoft.Network/dnsZones/TXT/read, write and delete; the role DNS Zone Contributor has them"
	if said, ok := errors.AsType[*azcore.ResponseError](err); ok {
		text := oneLine(strings.TrimSpace(fmt.Sprintf("HTTP %d %s", said.StatusCode, said.ErrorCode)) + azureMessage(said.RawResponse))
		switch {
		case said.StatusCode == http.StatusUnauthorized:
			return refusal{"the credentials are refused: " + text, "do tenant_id and subscription_id belong together, is this machine's clock right?"}
		case said.StatusCode == http.StatusForbidden:
			return refusal{"not allowed: " + text, rights}
		case said.StatusCode == http.StatusNotFound:
			return refusal{text, "is the zone a public DNS zone in resource_group of subscription_id?"}
		case said.StatusCode == http.StatusTooManyRequests:
			return refusal{"too many requests: " + text + retryAfterOf(said.RawResponse), "lower rate in the provider; who else uses this subscription?"}
		case said.StatusCode == http.StatusPreconditionFailed:
			return refusal{errChanged.Error() + ": " + text, "who else writes to this zone?"}
		case said.StatusCode >= http.StatusInternalServerError:
			return refusal{"Azure is in trouble: " + text, "see azure.status.microsoft"}
		}
		return refusal{reason: text}
	}
	if _, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		said := azureCode.FindString(err.Error())
		if said == "" {
			said = oneLine(strings.SplitN(err.Error(), "\n", 2)[0])
		}
		return refusal{"no token for these credentials: " + said, "check tenant_id, client_id and client_secret, which expires"}
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "ChainedTokenCredential"), strings.Contains(text, "ManagedIdentityCredential"):
		return refusal{"no Azure credentials: " + oneLine(text), "give the machine a managed identity or workload identity, set AZURE_TENANT_ID, " +
			"AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or set client_secret"}
	case isNetwork(err):
		return refusal{"Azure cannot be reached: " + reason(err), "edge needs HTTPS to management.azure.com and login.microsoftonline.com, HTTPS_PROXY is heeded"}
	}
	return refusal{reason: oneLine(text)}
}

// azureMessage is the message in an error's body, after a colon.
func azureMessage(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	var said struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
		Message string `json:"message"`
	}
	body, err := runtime.Payload(resp)
	if err != nil || json.Unmarshal(body, &said) != nil {
		return ""
	}
	if text := strings.TrimRight(said.Error.Message+said.Message, "."); text != "" {
		return ": " + text
	}
	return ""
}

func retryAfterOf(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	return after(resp.Header.Get("Retry-After"))
}
