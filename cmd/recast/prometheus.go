package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// histogram counts durations; observing one allocates nothing and takes no lock.
type histogram struct {
	buckets [len(bounds) + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

// bounds of a histogram's buckets: from a reservation's answer to a slow TFTP
// transfer.
var bounds = [...]time.Duration{100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// exposition writes metrics in Prometheus' text format, version 0.0.4.
type exposition struct{ w *bufio.Writer }

func newExposition(w io.Writer) exposition { return exposition{bufio.NewWriter(w)} }

// family begins a metric; its samples follow.
func (e exposition) family(name, kind, help string) {
	fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value; labels are pairs of name and value.
func (e exposition) sample(name string, value float64, labels ...string) {
	_, _ = e.w.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		fmt.Fprintf(e.w, `%c%s="%s"`, map[bool]byte{true: '{', false: ','}[i == 0], labels[i], escapeLabel.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		_ = e.w.WriteByte('}')
	}
	fmt.Fprintf(e.w, " %s\n", strconv.FormatFloat(value, 'g', -1, 64))
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// counts writes one sample for each value of a label, in order.
func (e exposition) counts(name, label string, m map[string]uint64) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.sample(name, float64(m[k]), label, k)
	}
}

func (e exposition) histogram(name string, h *histogram, labels ...string) {
	var n uint64
	for i := range h.buckets {
		n += h.buckets[i].Load()
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i].Seconds(), 'g', -1, 64)
		}
		e.sample(name+"_bucket", float64(n), append(slices.Clone(labels), "le", le)...)
	}
	e.sample(name+"_sum", time.Duration(h.sum.Load()).Seconds(), labels...)
	e.sample(name+"_count", float64(n), labels...)
}

func (e exposition) flush() error { return e.w.Flush() }
