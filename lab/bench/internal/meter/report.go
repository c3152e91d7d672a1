package meter

// Report is what the load generator says of one window, as a line of JSON.
type Report struct {
	Proxy    string `json:"proxy,omitempty"`
	Workload string `json:"workload,omitempty"`
	Round    int    `json:"round"`

	Mode    string  `json:"mode,omitempty"`
	Units   int64   `json:"units"` // of work done in the window
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_us_per_unit"`
	Rate    float64 `json:"units_per_s"`
	Cores   float64 `json:"proxy_cores"`
	Switch  float64 `json:"switches_per_unit"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	TTFT50  float64 `json:"ttft_p50_us,omitempty"` // to the first event of a stream
	TTFT99  float64 `json:"ttft_p99_us,omitempty"`
	Memory  float64 `json:"kib_per_conn"`
	PSS     float64 `json:"pss_mib"` // of the whole process tree
	Errors  int64   `json:"errors"`
	Note    string  `json:"note,omitempty"` // the first error, or what TLS agreed on
}
