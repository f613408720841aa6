package provision

import (
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// oneBoot is within which the ways of one boot are asked for: firmware that may take
// several goes through them for minutes.
const oneBoot = 10 * time.Minute

// asksByHTTP tells of firmware that is known to ask by HTTP Boot and not by PXE: in
// what was seen of it last, else by how its ramdisk came.
func asksByHTTP(seen []TimelineEntry, facts *inventory.Facts) bool {
	var pxe, http time.Time
	for _, l := range seen {
		if l.Seen == nil {
			continue
		}
		switch ipxe.LoaderKind(l.Seen.Client) {
		case ipxe.LoaderFirmware:
			pxe = l.Time
		case ipxe.LoaderHTTP:
			http = l.Time
		}
	}
	if pxe.IsZero() && http.IsZero() {
		return facts != nil && facts.Boot.HTTPBoot
	}
	return http.Sub(pxe) > oneBoot
}

// noLoader says why a machine has no loader to boot by, as far as it is known how its
// firmware asks; "" it has one.
func (e *Engine) noLoader(m *inventory.Machine) string {
	if _, imported := m.Boot.LoaderDigest(); !imported && !m.SecureBoot {
		return e.Loader(m, false)
	}
	var seen []TimelineEntry
	var facts *inventory.Facts
	if known, ok := e.known(m.Name); ok {
		seen, facts = known.history.seenLast(), known.snapshot().Status.Facts
	}
	if facts == nil {
		facts = e.discoveredFacts(m)
	}
	return e.Loader(m, asksByHTTP(seen, facts))
}
