package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"edge/config"

	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/route53/types"
	"github.com/libdns/libdns"
	"github.com/libdns/route53"
	"golang.org/x/sync/semaphore"
)

// route53Attempts bounds how often the SDK sends one request. Route 53 allows an
// account 5 requests a second and refuses more.
const route53Attempts = 5

// hosted is Amazon Route 53, whose unit is the record set: all TXT values of a
// name. libdns/route53 takes the names of an append or delete one after another:
// it lists the whole zone, merges, and writes the set, one change for each name.
//
//   - An order costs one request and two for each name, both when it adds and when
//     it deletes; a zone of more than 300 record sets is listed by pages.
//   - Nothing tells it of a set that another writer changed after the listing.
//     Calls here take turns, which keeps the orders of a Solver apart; a value that
//     another replica, or another issuer's Solver, writes at the same name at the
//     same moment can be lost. Wait then fails, and the order has to be repeated.
//     They do not meet as long as a name is in one certificate, since apex and
//     wildcard are in one order, and CNAMEs lead to a target for each name.
//   - A zone without hosted_zone_id is the first of its name that is listed, which
//     may be a private twin that no CA sees.
type hosted struct {
	api *route53.Provider
	// turn is held while a call is under way. Unlike the locks of libdns it is
	// waited for no longer than the context lives; more at once would only meet
	// the limit of requests.
	turn *semaphore.Weighted
}

// useRoute53 prepares Route 53 with the SDK's default credential chain. The
// environment's region counts because China and GovCloud have their own.
func (p *provider) useRoute53(c *config.Route53, log *slog.Logger) error {
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
		WaitForRoute53Sync: false, SkipRoute53SyncOnDelete: true, Logger: log,
	}
	// And have it loaded now, not at a renewal in two months when ~/.aws may have
	// changed: to add nothing to a zone whose ID is known sends no request.
	if _, err := api.AppendRecords(context.Background(), "", nil); err != nil {
		return fmt.Errorf("route53: %s", oneLine(err.Error()))
	}
	api.HostedZoneID = strings.TrimPrefix(c.HostedZoneID, "/hostedzone/")
	p.kind = "route53"
	p.backend = hosted{api, semaphore.NewWeighted(1)}
	p.explain = explainRoute53
	if api.HostedZoneID == "" {
		p.unseen = "is there a private hosted zone of the same name? Then choose the public one by hosted_zone_id"
	}
	return nil
}

// AppendRecords adds the values of all records that are not there.
func (h hosted) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if err := h.turn.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for changes of other orders: %w", err)
	}
	defer h.turn.Release(1)
	out, err := h.api.AppendRecords(ctx, zone, records)
	if _, refused := errors.AsType[*types.InvalidChangeBatch](err); !refused {
		return out, err
	}
	// libdns merges without looking, and a set with a value twice is refused: an
	// heir of an order presents what is there. Leave that out.
	all, err := h.api.GetRecords(ctx, zone)
	if err != nil {
		return nil, err
	}
	there := map[libdns.RR]bool{}
	for _, r := range all {
		there[ageless(r)] = true
	}
	missing := slices.DeleteFunc(slices.Clone(records), func(r libdns.Record) bool { return there[ageless(r)] })
	return h.api.AppendRecords(ctx, zone, missing)
}

// ageless is a record without its TTL, which is the record set's.
func ageless(r libdns.Record) libdns.RR {
	rr := r.RR()
	rr.TTL = 0
	return rr
}

// DeleteRecords deletes the values of all records that are there.
func (h hosted) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	if err := h.turn.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for changes of other orders: %w", err)
	}
	defer h.turn.Release(1)
	return h.api.DeleteRecords(ctx, zone, records)
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
		return refusal{said, "Route 53 allows 5 requests a second for an account; who else uses it?"}
	}
	return refusal{reason: said}
}
