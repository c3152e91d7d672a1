package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"edge/config"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/route53"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/libdns/libdns"
)

// Bounds of the conversation with Route 53, which allows 5 requests a second.
const (
	route53Attempts   = 5                      // of one request
	route53MaxBackoff = 5 * time.Second        // between two of them
	route53Swaps      = 8                      // of one change, when others change the same names
	route53Backoff    = 200 * time.Millisecond // grows with every lost swap
	route53Zones      = 10                     // of one name that are looked at
)

// hosted is Amazon Route 53, whose unit is the record set: all TXT values of a
// name. libdns/route53 reads the set, merges and upserts it, by which replicas
// that present for the same name at the same time lose each other's values; it
// lists the whole zone to do so, once for every name, and it ends the process
// when the AWS configuration does not load.
//
// A change here is one batch for the whole zone, which deletes the old sets,
// quoted exactly, and creates the new ones. Route 53 applies a batch as a whole or
// refuses it when a set is not what the batch says (InvalidChangeBatch), so it is
// a compare-and-swap, and a lost one is read and tried again.
type hosted struct {
	api *route53.Client
	id  string // configured hosted zone; "" means by name

	mu  sync.Mutex
	ids map[string]string // hosted zones found, by zone
}

// useRoute53 prepares Route 53 with the SDK's default credential chain. The
// environment's region counts because China and GovCloud have their own.
func (p *provider) useRoute53(c *config.Route53) error {
	region := awsconfig.WithDefaultRegion("us-east-1")
	if c.Region != "" {
		region = awsconfig.WithRegion(c.Region)
	}
	retryer := awsconfig.WithRetryer(func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = route53Attempts, route53MaxBackoff
		})
	})
	conf, err := awsconfig.LoadDefaultConfig(context.Background(), region, retryer)
	if err != nil {
		return fmt.Errorf("route53: AWS configuration: %s (check AWS_PROFILE and the files in ~/.aws)", oneLine(err.Error()))
	}
	p.kind = "route53"
	p.backend = &hosted{
		api: route53.NewFromConfig(conf),
		id:  strings.TrimPrefix(c.HostedZoneID, "/hostedzone/"),
		ids: map[string]string{},
	}
	p.explain = explainRoute53
	return nil
}

// AppendRecords adds the values of all records that are not there.
func (h *hosted) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	ours := quoted(zone, records)
	// Usually nothing is there, and one request is all it takes.
	return records, h.swap(ctx, zone, map[string]recordSet{}, ours, func(have, ours []string) []string {
		out := slices.Clone(have)
		for _, v := range ours {
			if !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
		return out
	})
}

// DeleteRecords deletes the values of all records that are there.
func (h *hosted) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	ours := quoted(zone, records)
	guess := map[string]recordSet{}
	for name, values := range ours {
		guess[name] = recordSet{ttl: int64(recordTTL.Seconds()), values: values}
	}
	return records, h.swap(ctx, zone, guess, ours, func(have, ours []string) []string {
		return slices.DeleteFunc(slices.Clone(have), func(v string) bool { return slices.Contains(ours, v) })
	})
}

// recordSet is the TXT records of one name. The zero value is none.
type recordSet struct {
	ttl    int64
	values []string // quoted
}

// swap turns every set from what it is, at first as guessed, into what edit
// makes of it.
func (h *hosted) swap(ctx context.Context, zone string, have map[string]recordSet, ours map[string][]string,
	edit func(have, ours []string) []string,
) error {
	id, err := h.zoneID(ctx, zone)
	if err != nil {
		return err
	}
	for try := range route53Swaps {
		var changes []types.Change
		for _, name := range sortedKeys(ours) {
			changes = append(changes, have[name].change(name, edit(have[name].values, ours[name]))...)
		}
		if len(changes) == 0 {
			return nil
		}
		_, err = h.api.ChangeResourceRecordSets(ctx, &route53.ChangeResourceRecordSetsInput{
			HostedZoneId: aws.String(id),
			ChangeBatch:  &types.ChangeBatch{Changes: changes},
		})
		var lost *types.InvalidChangeBatch
		if !errors.As(err, &lost) {
			return err
		}
		if try > 0 && !pause(ctx, time.Duration(try)*route53Backoff/2+rand.N(route53Backoff)) { //nolint:gosec // only spreads the replicas
			return context.Cause(ctx)
		}
		if have, err = h.read(ctx, id, sortedKeys(ours)); err != nil {
			return err
		}
		err = lost
	}
	return err
}

// change returns the changes that turn s into values, none when it is so already.
func (s recordSet) change(name string, values []string) []types.Change {
	if slices.Equal(s.values, values) {
		return nil
	}
	var out []types.Change
	if len(s.values) > 0 {
		out = append(out, change(types.ChangeActionDelete, name, s.ttl, s.values))
	}
	if len(values) > 0 {
		ttl := s.ttl
		if len(s.values) == 0 {
			ttl = int64(recordTTL.Seconds())
		}
		out = append(out, change(types.ChangeActionCreate, name, ttl, values))
	}
	return out
}

func change(action types.ChangeAction, name string, ttl int64, values []string) types.Change {
	records := make([]types.ResourceRecord, 0, len(values))
	for _, v := range values {
		records = append(records, types.ResourceRecord{Value: aws.String(v)})
	}
	return types.Change{Action: action, ResourceRecordSet: &types.ResourceRecordSet{
		Name: aws.String(name), Type: types.RRTypeTxt, TTL: aws.Int64(ttl), ResourceRecords: records,
	}}
}

// read fetches the TXT sets of names, each by one request for one set.
func (h *hosted) read(ctx context.Context, id string, names []string) (map[string]recordSet, error) {
	out := map[string]recordSet{}
	for _, name := range names {
		page, err := h.api.ListResourceRecordSets(ctx, &route53.ListResourceRecordSetsInput{
			HostedZoneId: aws.String(id), StartRecordName: aws.String(name), StartRecordType: types.RRTypeTxt, MaxItems: aws.Int32(1),
		})
		if err != nil {
			return nil, err
		}
		for _, set := range page.ResourceRecordSets { // the first at or after the name
			if !sameName(aws.ToString(set.Name), name) || set.Type != types.RRTypeTxt {
				continue
			}
			if set.SetIdentifier != nil {
				return nil, fmt.Errorf("%s has a TXT record set with a routing policy (use a simple one)", bare(name))
			}
			s := recordSet{ttl: aws.ToInt64(set.TTL)}
			for _, r := range set.ResourceRecords {
				s.values = append(s.values, aws.ToString(r.Value))
			}
			out[name] = s
		}
	}
	return out, nil
}

// zoneID finds the hosted zone. A private twin of a public zone is passed over:
// CAs do not see it.
func (h *hosted) zoneID(ctx context.Context, zone string) (string, error) {
	if h.id != "" {
		return h.id, nil
	}
	h.mu.Lock()
	id := h.ids[zone]
	h.mu.Unlock()
	if id != "" {
		return id, nil
	}
	page, err := h.api.ListHostedZonesByName(ctx, &route53.ListHostedZonesByNameInput{
		DNSName: aws.String(zone), MaxItems: aws.Int32(route53Zones),
	})
	if err != nil {
		return "", err
	}
	var public, private []string
	for _, z := range page.HostedZones {
		switch {
		case !sameName(aws.ToString(z.Name), zone):
		case z.Config != nil && z.Config.PrivateZone:
			private = append(private, aws.ToString(z.Id))
		default:
			public = append(public, aws.ToString(z.Id))
		}
	}
	found := public
	if len(found) == 0 {
		found = private
	}
	if len(found) != 1 {
		return "", zoneCountError(len(found))
	}
	id = strings.TrimPrefix(found[0], "/hostedzone/")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ids[zone] = id
	return id, nil
}

// zoneCountError is the number of hosted zones of a name where one was wanted.
type zoneCountError int

func (n zoneCountError) Error() string {
	return fmt.Sprintf("%d hosted zones of this name", int(n))
}

// quoted returns the values of TXT records as Route 53 writes them, by name.
// Record.check has refused what would need escapes.
func quoted(zone string, records []libdns.Record) map[string][]string {
	out := map[string][]string{}
	for _, r := range records {
		rr := r.RR()
		name := libdns.AbsoluteName(rr.Name, zone)
		out[name] = append(out[name], `"`+rr.Data+`"`)
	}
	return out
}

// explainRoute53 reads the SDK's errors.
func explainRoute53(err error) refusal {
	const actions = "the least that edge needs: route53:ListHostedZonesByName on *, and route53:ListResourceRecordSets and " +
		"route53:ChangeResourceRecordSets on the hosted zone"
	if count, ok := errors.AsType[zoneCountError](err); ok {
		if count == 0 {
			return refusal{"NoSuchHostedZone: these credentials see no hosted zone of this name", "is it in another account? hosted_zone_id names one directly"}
		}
		return refusal{count.Error(), "choose one by hosted_zone_id"}
	}
	var api interface {
		error
		ErrorCode() string
		ErrorMessage() string
	}
	if !errors.As(err, &api) {
		switch {
		case strings.Contains(err.Error(), "credentials"):
			return refusal{"no AWS credentials: " + oneLine(err.Error()), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"}
		case isNetwork(err):
			return refusal{"Route 53 cannot be reached: " + reason(err), "edge needs HTTPS to route53.amazonaws.com"}
		}
		return refusal{reason: oneLine(err.Error())}
	}
	words := api.ErrorMessage()
	var batch *types.InvalidChangeBatch
	if errors.As(err, &batch) && len(batch.Messages) > 0 {
		words = strings.Join(batch.Messages, ", ")
	}
	said := oneLine(api.ErrorCode() + ": " + words)
	switch code := api.ErrorCode(); code {
	case "AccessDenied", "AccessDeniedException":
		return refusal{said, actions}
	case "ExpiredToken", "ExpiredTokenException", "RequestExpired":
		return refusal{said, "renew the session credentials, or use a role that renews them"}
	case "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "InvalidSignatureException", "IncompleteSignature":
		return refusal{said, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and this machine's clock"}
	case "NoSuchHostedZone":
		return refusal{said, "check hosted_zone_id"}
	case "Throttling", "ThrottlingException", "PriorRequestNotComplete":
		return refusal{said, "Route 53 allows 5 requests a second for an account; who else uses it?"}
	}
	return refusal{reason: said}
}
