package provision

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// bootEntries reads the firmware's BootOrder or BootCurrent in hex (UEFI
// specification, section 3.3: an array of little-endian UINT16); nil for what
// is none.
func bootEntries(text string) []uint16 {
	b, err := hex.DecodeString(text)
	if err != nil || len(b)%2 != 0 {
		return nil
	}
	var out []uint16
	for ; len(b) > 0; b = b[2:] {
		out = append(out, binary.LittleEndian.Uint16(b))
	}
	return out
}

func bootNames(entries []uint16) string {
	var names []string
	for _, n := range entries {
		names = append(names, fmt.Sprintf("%04X", n))
	}
	return strings.Join(names, ",")
}

// bootOrderPrefix begins every finding of bootOrderFinding.
const bootOrderPrefix = "boot order: "

// bootOrderFinding compares the order that the agent left with what the
// installed system found after a start, "" for nothing worth a word. What the
// firmware adds behind ours, and the order there, is its own business (QEMU's sorts
// it at each start).
func bootOrderFinding(left, seen, current string) string {
	was, now, by := bootEntries(left), bootEntries(seen), bootEntries(current)
	switch {
	case len(was) == 0 || len(now) == 0:
		return ""
	case now[0] != was[0] || slices.ContainsFunc(was, func(n uint16) bool { return !slices.Contains(now, n) }):
		return fmt.Sprintf("%sthe firmware changed it from %s to %s", bootOrderPrefix, bootNames(was), bootNames(now))
	case len(by) == 1 && by[0] != was[0]:
		return fmt.Sprintf("%sit started by %04X and not by %04X, which is first and ours", bootOrderPrefix, by[0], was[0])
	}
	return ""
}
