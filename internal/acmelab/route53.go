package acmelab

import (
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	route53NS = "https://route53.amazonaws.com/doc/2013-04-01/"

	// route53Page is the largest page of record sets that Route 53 returns.
	route53Page = 300

	maxCloudRequest = 1 << 20
)

// Route53Options are the settings of a fake Route 53.
type Route53Options struct {
	Addr        string   // to listen on; "" is a free port of 127.0.0.1
	DNS         *DNS     // where the records go; its zones are the hosted zones
	Private     []string // zones with a private twin of the same name, which is listed first
	AccessKeyID string   // that requests must be signed with; "" is any
	Pending     int      // how many times GetChange answers PENDING for a change
}

// Route53 is a strict fake of the part of Amazon Route 53 that an ACME client
// needs: ListHostedZonesByName, ListResourceRecordSets, ChangeResourceRecordSets
// and GetChange, REST with XML. It refuses what it does not know, elements and
// query parameters too, and it applies a batch as a whole or not at all, as
// Route 53 does. The form of the signature is checked, its value is not.
//
// Programs reach it by AWS_ENDPOINT_URL_ROUTE_53; see Env.
type Route53 struct {
	URL string

	front  *front
	dns    *DNS
	keyID  string
	delays int // Route53Options.Pending

	mu       sync.Mutex
	zones    []hostedZone // in the order of ListHostedZonesByName
	requests map[string]int
	changes  map[string]int // GetChange calls that will still answer PENDING
	delay    time.Duration
	fail     func(op string) (status int, code string)
}

// hostedZone is one zone and its record sets.
type hostedZone struct {
	id, name string
	private  bool
	sets     map[setKey]recordSet
}

type setKey struct{ name, kind string } // canonical name, type

// recordSet is a ResourceRecordSet in XML. What Unknown takes is refused.
type recordSet struct {
	Name    string           `xml:"Name"`
	Type    string           `xml:"Type"`
	TTL     *int64           `xml:"TTL"`
	Records []resourceRecord `xml:"ResourceRecords>ResourceRecord"`
	Unknown []unknown        `xml:",any"`
}

type resourceRecord struct {
	Value   string    `xml:"Value"`
	Unknown []unknown `xml:",any"`
}

type unknown struct{ XMLName xml.Name }

type changeRequest struct {
	XMLName xml.Name  `xml:"https://route53.amazonaws.com/doc/2013-04-01/ ChangeResourceRecordSetsRequest"`
	Unknown []unknown `xml:",any"`
	Batch   struct {
		Comment string    `xml:"Comment"`
		Unknown []unknown `xml:",any"`
		Changes struct {
			Change  []setChange `xml:"Change"`
			Unknown []unknown   `xml:",any"`
		} `xml:"Changes"`
	} `xml:"ChangeBatch"`
}

type setChange struct {
	Action  string    `xml:"Action"`
	Set     recordSet `xml:"ResourceRecordSet"`
	Unknown []unknown `xml:",any"`
}

// StartRoute53 runs a fake Route 53. The caller must Close it.
func StartRoute53(o Route53Options) (*Route53, error) {
	f := &Route53{dns: o.DNS, keyID: o.AccessKeyID, delays: o.Pending, requests: map[string]int{}, changes: map[string]int{}}
	for i, zone := range o.DNS.Zones() {
		if slices.ContainsFunc(o.Private, func(p string) bool { return dns.CanonicalName(p) == zone }) {
			f.zones = append(f.zones, hostedZone{id: fmt.Sprintf("Z0LABPRIVATE%d", i+1), name: zone, private: true, sets: map[setKey]recordSet{}})
		}
		f.zones = append(f.zones, hostedZone{id: fmt.Sprintf("Z0LAB%d", i+1), name: zone, sets: map[setKey]recordSet{}})
	}
	slices.SortStableFunc(f.zones, func(a, b hostedZone) int { return compareNames(a.name, b.name) })
	for _, z := range f.zones { // every hosted zone has these from the start
		z.put("NS", 172800, "ns1."+z.name)
		z.put("SOA", 900, "ns1."+z.name+" hostmaster."+z.name+" 1 7200 900 1209600 86400")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2013-04-01/hostedzonesbyname", f.op("ListHostedZonesByName", f.listZones, "dnsname", "hostedzoneid", "maxitems"))
	mux.HandleFunc("GET /2013-04-01/hostedzone/{id}/rrset", f.op("ListResourceRecordSets", f.listSets, "identifier", "maxitems", "name", "type"))
	change := f.op("ChangeResourceRecordSets", f.changeSets)
	mux.HandleFunc("POST /2013-04-01/hostedzone/{id}/rrset", change)
	mux.HandleFunc("POST /2013-04-01/hostedzone/{id}/rrset/{$}", change)
	mux.HandleFunc("GET /2013-04-01/change/{id}", f.op("GetChange", f.getChange))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f.count("unknown " + r.Method + " " + r.URL.Path)
		r53Error(w, http.StatusNotFound, "UnknownOperationException", r.Method+" "+r.URL.Path)
	})
	var err error
	if f.front, err = serve(o.Addr, nil, mux); err != nil {
		return nil, err
	}
	f.URL = f.front.url
	return f, nil
}

func (z hostedZone) put(kind string, ttl int64, values ...string) {
	set := recordSet{Name: z.name, Type: kind, TTL: &ttl}
	for _, v := range values {
		set.Records = append(set.Records, resourceRecord{Value: v})
	}
	z.sets[setKey{z.name, kind}] = set
}

// Close ends the server.
func (f *Route53) Close() error { return f.front.close() }

// Env is what a process needs in its environment to use the server.
func (f *Route53) Env() []string {
	keyID := f.keyID
	if keyID == "" {
		keyID = AccessKeyID
	}
	return []string{
		"AWS_ENDPOINT_URL_ROUTE_53=" + f.URL, "AWS_REGION=" + region, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ACCESS_KEY_ID=" + keyID, "AWS_SECRET_ACCESS_KEY=" + SecretAccessKey,
	}
}

// ZoneID returns the id of the public hosted zone of that name, "" if there is
// none.
func (f *Route53) ZoneID(zone string) string {
	for _, z := range f.zones {
		if !z.private && z.name == dns.CanonicalName(zone) {
			return z.id
		}
	}
	return ""
}

// Requests counts requests by operation; refused ones are counted too.
func (f *Route53) Requests() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.requests)
}

// SetDelay makes each request wait before it is handled.
func (f *Route53) SetDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// SetFail installs fn, which is asked first about each operation: a status
// other than 0 is answered with the code, as 400 and "Throttling". nil removes
// it.
func (f *Route53) SetFail(fn func(op string) (status int, code string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fn
}

func (f *Route53) count(op string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests[op]++
}

// op wraps a handler with what all operations have in common.
func (f *Route53) op(name string, h http.HandlerFunc, params ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.count(name)
		f.mu.Lock()
		delay, fail := f.delay, f.fail
		f.mu.Unlock()
		if !wait(r.Context(), delay) {
			return
		}
		if fail != nil {
			if status, code := fail(name); status != 0 {
				r53Error(w, status, code, "acmelab was told to fail")
				return
			}
		}
		if code, text := f.checkSignature(r); code != "" {
			r53Error(w, http.StatusForbidden, code, text)
			return
		}
		if err := knownQuery(r.URL.Query(), params...); err != nil {
			r53Error(w, http.StatusBadRequest, "InvalidInput", err.Error())
			return
		}
		h(w, r)
	}
}

var signature = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/us-east-1/route53/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// checkSignature looks at the shape of a Signature Version 4 and returns the
// code and message of an error, "" if there is none.
func (f *Route53) checkSignature(r *http.Request) (code, text string) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return "MissingAuthenticationToken", "Missing Authentication Token"
	}
	m := signature.FindStringSubmatch(header)
	date := r.Header.Get("X-Amz-Date")
	if m == nil || !strings.HasPrefix(date, m[2]+"T") {
		return "IncompleteSignature", "the Authorization header is no AWS Signature Version 4 of route53 in us-east-1"
	}
	for _, name := range []string{"host", "x-amz-date"} {
		if !slices.Contains(strings.Split(m[3], ";"), name) {
			return "IncompleteSignature", name + " is not signed"
		}
	}
	if f.keyID != "" && m[1] != f.keyID {
		return "InvalidClientTokenId", "The security token included in the request is invalid."
	}
	return "", ""
}

func (f *Route53) listZones(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit, err := pageSize(q.Get("maxitems"), 100)
	if err != nil {
		r53Error(w, http.StatusBadRequest, "InvalidInput", err.Error())
		return
	}
	start := q.Get("dnsname")
	zones := f.zones
	if start != "" { // the list begins there, whether or not there is such a zone
		i := slices.IndexFunc(zones, func(z hostedZone) bool { return compareNames(z.name, dns.CanonicalName(start)) >= 0 })
		zones = zones[min(len(zones), max(i, 0)):]
		if i < 0 {
			zones = nil
		}
	}
	type xmlZone struct {
		ID     string `xml:"Id"`
		Name   string
		Caller string `xml:"CallerReference"`
		Config struct{ PrivateZone bool }
		Count  int `xml:"ResourceRecordSetCount"`
	}
	out := struct {
		XMLName     xml.Name  `xml:"https://route53.amazonaws.com/doc/2013-04-01/ ListHostedZonesByNameResponse"`
		Zones       []xmlZone `xml:"HostedZones>HostedZone"`
		DNSName     string    `xml:"DNSName,omitempty"`
		IsTruncated bool
		NextDNSName string `xml:"NextDNSName,omitempty"`
		NextZoneID  string `xml:"NextHostedZoneId,omitempty"`
		MaxItems    int
	}{DNSName: start, MaxItems: limit}
	if len(zones) > limit {
		out.IsTruncated, out.NextDNSName, out.NextZoneID = true, zones[limit].name, zones[limit].id
		zones = zones[:limit]
	}
	f.mu.Lock()
	for _, z := range zones {
		x := xmlZone{ID: "/hostedzone/" + z.id, Name: z.name, Caller: "acmelab", Count: len(z.sets)}
		x.Config.PrivateZone = z.private
		out.Zones = append(out.Zones, x)
	}
	f.mu.Unlock()
	writeXML(w, http.StatusOK, out)
}

// zone finds the zone of a request; it answers itself when there is none.
func (f *Route53) zone(w http.ResponseWriter, r *http.Request) (hostedZone, bool) {
	id := r.PathValue("id")
	for _, z := range f.zones {
		if z.id == id {
			return z, true
		}
	}
	r53Error(w, http.StatusNotFound, "NoSuchHostedZone", "No hosted zone found with ID: "+id)
	return hostedZone{}, false
}

func (f *Route53) listSets(w http.ResponseWriter, r *http.Request) {
	z, ok := f.zone(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	limit, err := pageSize(q.Get("maxitems"), route53Page)
	if err == nil && q.Get("type") != "" && q.Get("name") == "" {
		err = fmt.Errorf("a type without a name")
	}
	if err != nil {
		r53Error(w, http.StatusBadRequest, "InvalidInput", err.Error())
		return
	}
	f.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(z.sets), compareKeys)
	sets := make([]recordSet, 0, len(keys))
	for _, k := range keys {
		sets = append(sets, z.sets[k])
	}
	f.mu.Unlock()
	if name := q.Get("name"); name != "" {
		start := setKey{unescapeName(dns.CanonicalName(name)), q.Get("type")}
		i := 0
		for i < len(keys) && compareKeys(keys[i], start) < 0 {
			i++
		}
		sets = sets[i:]
	}
	out := struct {
		XMLName     xml.Name    `xml:"https://route53.amazonaws.com/doc/2013-04-01/ ListResourceRecordSetsResponse"`
		Sets        []recordSet `xml:"ResourceRecordSets>ResourceRecordSet"`
		IsTruncated bool
		MaxItems    int
		NextName    string `xml:"NextRecordName,omitempty"`
		NextType    string `xml:"NextRecordType,omitempty"`
	}{MaxItems: limit}
	if len(sets) > limit {
		out.IsTruncated, out.NextName, out.NextType = true, sets[limit].Name, sets[limit].Type
		sets = sets[:limit]
	}
	out.Sets = sets
	writeXML(w, http.StatusOK, out)
}

func (f *Route53) changeSets(w http.ResponseWriter, r *http.Request) {
	z, ok := f.zone(w, r)
	if !ok {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCloudRequest))
	var req changeRequest
	if err == nil {
		err = xml.Unmarshal(body, &req)
	}
	if err == nil {
		err = req.check()
	}
	if err != nil {
		r53Error(w, http.StatusBadRequest, "InvalidInput", err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := maps.Clone(z.sets)
	var problems []string
	for _, c := range req.Batch.Changes.Change {
		if problem := c.apply(z.name, next); problem != "" {
			problems = append(problems, problem)
		}
	}
	if len(problems) > 0 {
		r53Error(w, http.StatusBadRequest, "InvalidChangeBatch", "["+strings.Join(problems, ", ")+"]")
		return
	}
	if !z.private {
		if err := f.dns.replace(zoneLines(z.sets, next), zoneLines(next, z.sets)); err != nil {
			r53Error(w, http.StatusBadRequest, "InvalidInput", err.Error())
			return
		}
	}
	clear(z.sets)
	maps.Copy(z.sets, next)
	id := "C" + strconv.Itoa(len(f.changes)+1) + z.id
	f.changes[id] = f.delays
	f.writeChange(w, "ChangeResourceRecordSetsResponse", id)
}

func (f *Route53) getChange(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	f.mu.Lock()
	defer f.mu.Unlock()
	left, ok := f.changes[id]
	if !ok {
		r53Error(w, http.StatusNotFound, "NoSuchChange", "Could not find resource with ID: "+id)
		return
	}
	f.writeChange(w, "GetChangeResponse", id)
	f.changes[id] = max(0, left-1)
}

// writeChange answers with the state of a change. The caller holds mu.
func (f *Route53) writeChange(w http.ResponseWriter, root, id string) {
	status := "INSYNC"
	if f.changes[id] > 0 {
		status = "PENDING"
	}
	out := struct {
		XMLName xml.Name
		Info    struct {
			ID          string `xml:"Id"`
			Status      string
			SubmittedAt time.Time
		} `xml:"ChangeInfo"`
	}{XMLName: xml.Name{Space: route53NS, Local: root}}
	out.Info.ID, out.Info.Status, out.Info.SubmittedAt = "/change/"+id, status, time.Now().UTC()
	writeXML(w, http.StatusOK, out)
}

// r53Error answers in the form of AWS REST with XML.
func r53Error(w http.ResponseWriter, status int, code, text string) {
	out := struct {
		XMLName xml.Name `xml:"https://route53.amazonaws.com/doc/2013-04-01/ ErrorResponse"`
		Type    string   `xml:"Error>Type"`
		Code    string   `xml:"Error>Code"`
		Message string   `xml:"Error>Message"`
		Request string   `xml:"RequestId"`
	}{Type: "Sender", Code: code, Message: text, Request: "00000000-0000-0000-0000-000000000000"}
	writeXML(w, status, out)
}

func writeXML(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(v) // the client may be gone
}

// knownQuery refuses parameters that the API does not have.
func knownQuery(q url.Values, known ...string) error {
	for name, values := range q {
		if !slices.Contains(known, name) {
			return fmt.Errorf("query parameter %q is not known", name)
		}
		if len(values) > 1 {
			return fmt.Errorf("query parameter %q is given twice", name)
		}
	}
	return nil
}

func pageSize(text string, most int) (int, error) {
	if text == "" {
		return most, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("maxitems %q is no good number", text)
	}
	return min(n, most), nil
}
