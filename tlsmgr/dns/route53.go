package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"edge/config"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/libdns/libdns"
	"github.com/libdns/route53"
	miekg "github.com/miekg/dns"
	"golang.org/x/sync/semaphore"
)

// Bounds of changes of Route 53.
const (
	route53Attempts = 5   // of one request, by the SDK, which rests longer after each refusal
	route53Rounds   = 4   // of writing what is not as it should be and reading it back
	route53Names    = 32  // whose leases are held at once
	route53Call     = 2   // names that libdns is given at once, so that their requests can be paced
	route53Page     = 300 // record sets of a page, at most
)

// hosted is Amazon Route 53, whose unit is the record set: all TXT values of a
// name. libdns/route53 takes the names of an append or delete one after another:
// it lists the whole zone, merges, and writes the set, one change for each name.
// Nothing tells it of a set that another writer changed after the listing. So
// here every change
//
//   - is made while the leases of its names are held, which keeps all replicas
//     and issuers that share a storage apart; calls of one Solver take turns,
//   - is read back. After adding, our values must be there and so must those of
//     others that stood there before; after deleting, ours must not. What another
//     writer, that knows nothing of leases, has undone in the meantime is repaired,
//     a few times.
//
// An order of 25 names in a zone of up to 300 record sets costs 67 requests to
// add and 67 to delete, 52 with hosted_zone_id, which saves looking the zone up
// for every other name. Route 53 allows an account five a second, however many
// are under way at once: that is 13 s, or 10 s, and parallel requests would only
// be refused (TestRequestsOfABundle). A zone without hosted_zone_id is the first
// of its name that is listed, which may be a private twin that no CA sees.
type hosted struct {
	api   *route53.Provider
	lease leaseFunc
	pace  *pace
	// turn is held while a call is under way. Unlike the locks of libdns it is
	// waited for no longer than the context lives.
	turn *semaphore.Weighted
}

// useRoute53 prepares Route 53 with the SDK's default credential chain. The
// environment's region counts because China and GovCloud have their own.
func (p *provider) useRoute53(c *config.Route53, o Options, pc *pace) error {
	region := awsconfig.WithDefaultRegion("us-east-1")
	if c.Region != "" {
		region = awsconfig.WithRegion(c.Region)
	}
	// libdns loads the configuration when it is first called, and ends the process
	// when that fails: try before it does.
	conf, err := awsconfig.LoadDefaultConfig(context.Background(), region)
	if err != nil {
		return fmt.Errorf("route53: AWS configuration: %s (check AWS_PROFILE and the files in ~/.aws)", oneLine(err.Error()))
	}
	api := &route53.Provider{
		Region: conf.Region, HostedZoneID: "none", MaxRetries: route53Attempts,
		WaitForRoute53Sync: false, SkipRoute53SyncOnDelete: true, Logger: o.Logger,
	}
	// And have it loaded now, not at a renewal in two months when ~/.aws may have
	// changed: to add nothing to a zone whose ID is known sends no request.
	if _, err := api.AppendRecords(context.Background(), "", nil); err != nil {
		return fmt.Errorf("route53: %s", oneLine(err.Error()))
	}
	api.HostedZoneID = strings.TrimPrefix(c.HostedZoneID, "/hostedzone/")
	p.kind = "route53"
	p.backend = hosted{api, o.Lease, pc, semaphore.NewWeighted(1)}
	p.perRecord = time.Second
	p.explain = explainRoute53
	if api.HostedZoneID == "" {
		p.unseen = "is there a private hosted zone of the same name? Then choose the public one by hosted_zone_id"
	}
	return nil
}

// AppendRecords adds the values of all records that are not there.
func (h hosted) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, zone, setsOf(zone, records), false)
}

// DeleteRecords deletes the values of all records that are there.
func (h hosted) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, zone, setsOf(zone, records), true)
}

// each adds ours to the values of each name, or deletes them.
func (h hosted) each(ctx context.Context, zone string, ours sets, deleting bool) error {
	if err := h.turn.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for changes of other orders: %w", err)
	}
	defer h.turn.Release(1)
	for names := range slices.Chunk(sortedKeys(ours), route53Names) {
		if err := h.under(ctx, zone, names, ours, deleting); err != nil {
			return err
		}
	}
	return nil
}

// under holds the leases of names while it changes and reads back.
func (h hosted) under(ctx context.Context, zone string, names []string, ours sets, deleting bool) error {
	release, err := h.lease.hold(ctx, zone, names)
	if err != nil {
		return err
	}
	defer release()
	have, pages, err := h.read(ctx, zone, 1)
	if err != nil {
		return err
	}
	wanted := sets{}
	if !deleting {
		for _, name := range names {
			wanted[name] = with(have[name], ours[name])
		}
	}
	refusals := 0
	for range route53Rounds {
		todo, do := lacking(zone, wanted, have), h.api.AppendRecords
		if deleting {
			todo, do = lacking(zone, standing(names, ours, have), nil), h.api.DeleteRecords
		}
		if len(todo) == 0 {
			return nil
		}
		err := h.write(ctx, zone, pages, todo, do)
		_, refused := errors.AsType[*types.InvalidChangeBatch](err)
		if refused { // somebody has changed a set after libdns read it, or it cannot be
			refusals++
		}
		if err != nil && (!refused || refusals > 1) {
			return err
		}
		if have, pages, err = h.read(ctx, zone, pages); err != nil {
			return err
		}
	}
	return errChanged
}

// standing are the values of ours that are there.
func standing(names []string, ours, have sets) sets {
	out := sets{}
	for _, name := range names {
		out[name] = without(ours[name], without(ours[name], have[name]))
	}
	return out
}

// lacking are the records of wanted that have does not have.
func lacking(zone string, wanted, have sets) []libdns.Record {
	var out []libdns.Record
	for _, name := range sortedKeys(wanted) {
		for _, v := range without(wanted[name], have[name]) {
			out = append(out, libdns.TXT{Name: libdns.RelativeName(name, zone), TTL: recordTTL, Text: v})
		}
	}
	return out
}

// read lists the TXT values of the zone, and tells how many pages that took. It
// may cost as many requests as last time, and one to look the zone up.
func (h hosted) read(ctx context.Context, zone string, pages int) (sets, int, error) {
	if err := h.pace.wait(ctx, h.lookUp()+pages); err != nil {
		return nil, 0, err
	}
	records, err := h.api.GetRecords(ctx, zone)
	if err != nil {
		return nil, 0, err
	}
	type key struct{ name, kind string }
	all, out := map[key]bool{}, sets{}
	for _, r := range records {
		rr := r.RR()
		all[key{rr.Name, rr.Type}] = true
		if rr.Type == "TXT" {
			name := miekg.CanonicalName(libdns.AbsoluteName(rr.Name, zone))
			out[name] = append(out[name], rr.Data)
		}
	}
	return out, 1 + len(all)/route53Page, nil
}

// lookUp is how many requests a call spends on finding the zone.
func (h hosted) lookUp() int {
	if h.api.HostedZoneID == "" {
		return 1
	}
	return 0
}

// write gives libdns the records of a few names at a time, at the pace of the
// API: each name costs a listing and a change.
func (h hosted) write(ctx context.Context, zone string, pages int, records []libdns.Record,
	do func(context.Context, string, []libdns.Record) ([]libdns.Record, error),
) error {
	byName := map[string][]libdns.Record{}
	for _, r := range records {
		byName[r.RR().Name] = append(byName[r.RR().Name], r)
	}
	for names := range slices.Chunk(sortedKeys(byName), route53Call) {
		if err := h.pace.wait(ctx, h.lookUp()+len(names)*(pages+1)); err != nil {
			return err
		}
		var batch []libdns.Record
		for _, name := range names {
			batch = append(batch, byName[name]...)
		}
		if _, err := do(ctx, zone, batch); err != nil {
			return err
		}
	}
	return nil
}

// explainRoute53 reads the errors of the SDK, which libdns wraps, and its own.
func explainRoute53(err error) refusal {
	const actions = "the least that edge needs: route53:ListHostedZonesByName on *, and route53:ListResourceRecordSets and " +
		"route53:ChangeResourceRecordSets on the hosted zone"
	var api interface {
		error
		ErrorCode() string
		ErrorMessage() string
	}
	if !errors.As(err, &api) {
		said := oneLine(err.Error())
		switch {
		case errors.Is(err, errChanged):
			return refusal{said, "who else writes to this zone? A tool that replaces record sets by an old state undoes what others add"}
		case strings.HasPrefix(said, "HostedZoneNotFound"): // libdns' own
			return refusal{"NoSuchHostedZone: these credentials see no hosted zone of this name", "is it in another account? hosted_zone_id names one directly"}
		case strings.HasPrefix(said, "failed to parse"): // libdns', any record of the zone
			return refusal{said, "libdns reads the whole zone: correct that record, or lead the challenge name to another zone by CNAME"}
		case strings.Contains(said, "credentials"):
			return refusal{"no AWS credentials: " + said, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role"}
		case isTimeout(err):
			return refusal{"Route 53 did not finish in time: " + said, "edge needs HTTPS to route53.amazonaws.com, " +
				"and lists the zone once for each name: lead the challenge names of a big one to a small one by CNAME"}
		case isNetwork(err):
			return refusal{"Route 53 cannot be reached: " + reason(err), "edge needs HTTPS to route53.amazonaws.com"}
		}
		return refusal{reason: said}
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
		return refusal{said, "Route 53 allows 5 requests a second for an account; who else uses it? Lower rate in the provider"}
	}
	return refusal{reason: said}
}
