package main

import (
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"recast/inventory"
	"recast/ipxe"
	"recast/web"
)

// meters count what the servers observe. Nothing is counted per machine: labels
// are message types, results and reasons, of which there are a few.
type meters struct {
	asked [len(dhcpAsked)]atomic.Uint64
	dhcp  [len(dhcpReplies)]histogram
	tftp  transfers
	file  transfers

	scripts     [len(scriptKinds)]atomic.Uint64
	scriptTimes histogram
	claims      [2]atomic.Uint64 // granted, refused
	tls         atomic.Uint64
	lines       atomic.Uint64 // of syslog
}

// transfers of files, by their end.
type transfers struct {
	ends  [len(transferEnds)]atomic.Uint64
	bytes atomic.Int64
	took  histogram
}

var (
	dhcpAsked    = [...]inventory.ObservationKind{inventory.SawDiscover, inventory.SawRequest, inventory.SawDecline, inventory.SawRelease}
	askedNames   = [len(dhcpAsked)]string{"DISCOVER", "REQUEST", "DECLINE", "RELEASE"}
	dhcpReplies  = [...]inventory.ObservationKind{inventory.SawOffer, inventory.SawAck, inventory.SawNak}
	dhcpNames    = [len(dhcpReplies)]string{"OFFER", "ACK", "NAK"}
	scriptKinds  = [...]string{"ramdisk", "local", "ignore", "wait", ipxe.SawWait, "other"}
	transferEnds = [...]string{"whole", "range", "size", "broken", "unanswered", "missing"}
)

// observe counts what a server saw. It stands on DHCP's way to every answer: it
// allocates nothing and waits for nobody.
func (m *meters) observe(o *inventory.Observation) {
	switch o.Kind {
	case inventory.SawDiscover, inventory.SawRequest, inventory.SawDecline, inventory.SawRelease:
		for i, k := range dhcpAsked {
			if k == o.Kind {
				m.asked[i].Add(1)
			}
		}
	case inventory.SawOffer, inventory.SawAck, inventory.SawNak:
		for i, k := range dhcpReplies {
			if k == o.Kind {
				m.dhcp[i].observe(time.Duration(o.Took))
			}
		}
	case inventory.SawTFTP:
		m.tftp.observe(o)
	case inventory.SawFile:
		m.file.observe(o)
	case inventory.SawScript:
		last := len(scriptKinds) - 1
		kind, _, _ := strings.Cut(o.Detail, ":")
		for i, k := range scriptKinds {
			if k == kind || i == last {
				m.scripts[i].Add(1)
				break
			}
		}
		m.scriptTimes.observe(time.Duration(o.Took))
	case inventory.SawClaim:
		if o.Error == "" {
			m.claims[0].Add(1)
		} else {
			m.claims[1].Add(1)
		}
	case inventory.SawTLS:
		m.tls.Add(1)
	case inventory.SawSyslog:
		m.lines.Add(1)
	}
}

func (t *transfers) observe(o *inventory.Observation) {
	end := 0
	switch {
	case o.Asked:
		end = 2
	case o.Error != "" && o.Bytes > 0:
		end = 3
	case strings.HasPrefix(o.Error, "no answer"):
		end = 4
	case o.Error != "":
		end = 5
	case o.Bytes < o.Size:
		end = 1
	}
	t.ends[end].Add(1)
	t.bytes.Add(o.Bytes)
	if o.Error == "" && !o.Asked {
		t.took.observe(time.Duration(o.Took))
	}
}

var started = time.Now()

// metrics writes everything in Prometheus' text format.
func (s *server) metrics(w io.Writer, v web.StatusReply) error {
	e := newExposition(w)
	e.family("recast_build_info", "gauge", "The version that runs; the value is 1.")
	e.sample("recast_build_info", 1, "version", v.Version)
	e.family("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970.")
	e.sample("process_start_time_seconds", float64(started.UnixMilli())/1000)
	e.family("recast_store_writable", "gauge", "1 while the store takes writes.")
	e.sample("recast_store_writable", truth(v.ReadOnly == ""))
	e.family("recast_frozen", "gauge", "1 while rollouts are frozen.")
	e.sample("recast_frozen", truth(v.Frozen.By != "" || v.Frozen.Reason != ""))
	e.family("recast_findings", "gauge", "Findings of the DHCP and TFTP servers, such as another server on the segment.")
	e.sample("recast_findings", float64(len(v.Findings)))
	e.family("recast_machines", "gauge", "Known machines by phase.")
	phases := map[string]uint64{}
	for p, n := range s.engine.Phases() {
		phases[string(p)] = uint64(n)
	}
	e.counts("recast_machines", "phase", phases)

	d := s.dhcp.Stats()
	e.family("recast_dhcp_received_total", "counter", "DHCP datagrams that arrived.")
	e.sample("recast_dhcp_received_total", float64(d.Received))
	e.family("recast_dhcp_requests_total", "counter", "DHCP requests on Networks that are served, by message type; DHCPv6's Solicit counts as DISCOVER, what else it asks as REQUEST.")
	for i, name := range askedNames {
		e.sample("recast_dhcp_requests_total", float64(s.meters.asked[i].Load()), "type", name)
	}
	e.family("recast_dhcp_replies_total", "counter", "DHCP answers sent, by message type.")
	e.counts("recast_dhcp_replies_total", "type", d.Replies)
	e.family("recast_dhcp_unanswered_total", "counter", "DHCP requests that were understood and not answered, by reason.")
	e.counts("recast_dhcp_unanswered_total", "reason", d.Silent)
	e.family("recast_dhcp_relayed_total", "counter", "DHCP requests that came through relays, by Network.")
	e.counts("recast_dhcp_relayed_total", "network", d.Relayed)
	e.family("recast_dhcp_panics_total", "counter", "DHCP packets whose handling panicked; each is a bug.")
	e.sample("recast_dhcp_panics_total", float64(d.Panics))
	e.family("recast_dhcp_lease_records", "gauge", "Lease records, expired and quarantined ones included.")
	e.sample("recast_dhcp_lease_records", float64(d.Leases))
	e.family("recast_dhcp_reply_seconds", "histogram", "From a DHCP request's arrival until its answer is ready to send, its lease durable, by message type of the answer; DHCPv6's Advertise and Reply count as OFFER and ACK.")
	for i := range s.meters.dhcp {
		e.histogram("recast_dhcp_reply_seconds", &s.meters.dhcp[i], "type", dhcpNames[i])
	}
	s.meters.tftp.write(e, "recast_tftp", "TFTP")
	s.meters.file.write(e, "recast_boot_file", "Loaders, kernels and ramdisks over HTTP")

	e.family("recast_boot_scripts_total", "counter", "Boot scripts given, by what they start.")
	for i, k := range scriptKinds {
		e.sample("recast_boot_scripts_total", float64(s.meters.scripts[i].Load()), "answer", k)
	}
	e.family("recast_boot_script_seconds", "histogram", "From the request for a boot script until it is written.")
	e.histogram("recast_boot_script_seconds", &s.meters.scriptTimes)
	e.family("recast_agent_claims_total", "counter", "Claims of ramdisks, by result.")
	e.sample("recast_agent_claims_total", float64(s.meters.claims[0].Load()), "result", "granted")
	e.sample("recast_agent_claims_total", float64(s.meters.claims[1].Load()), "result", "refused")
	e.family("recast_tls_failures_total", "counter", "TLS handshakes with the agent port that failed.")
	e.sample("recast_tls_failures_total", float64(s.meters.tls.Load()))
	e.family("recast_syslog_lines_total", "counter", "Lines of machines' syslog that were kept.")
	e.sample("recast_syslog_lines_total", float64(s.meters.lines.Load()))
	e.family("recast_malformed_total", "counter", "What was sent and not understood, or refused, by who heard it and why.")
	for _, k := range slices.Sorted(maps.Keys(v.Malformed)) {
		source, reason, _ := strings.Cut(k, ": ")
		e.sample("recast_malformed_total", float64(v.Malformed[k]), "source", source, "reason", reason)
	}
	return e.flush()
}

func (t *transfers) write(e exposition, name, what string) {
	e.family(name+"_transfers_total", "counter", what+": transfers that ended, by how.")
	for i, end := range transferEnds {
		e.sample(name+"_transfers_total", float64(t.ends[i].Load()), "end", end)
	}
	e.family(name+"_bytes_total", "counter", what+": bytes that went.")
	e.sample(name+"_bytes_total", float64(t.bytes.Load()))
	e.family(name+"_transfer_seconds", "histogram", what+": time that a transfer without an error took.")
	e.histogram(name+"_transfer_seconds", &t.took)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
