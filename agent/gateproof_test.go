package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/pack"
)

// proofOf is what the server sends with a gate's job.
func proofOf(t testing.TB, p *packed, regions []inventory.Region) json.RawMessage {
	t.Helper()
	var bounds [][2]int64
	for _, r := range regions {
		bounds = append(bounds, [2]int64{r.Start, r.End})
	}
	proof, err := pack.NewProof(p.m, bytes.NewReader(p.img), bounds)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(proof)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGateProvesADiskWithoutAByteOfTheImage(t *testing.T) {
	p, s, d, w := provable(t, 1, "esp", "root")
	w.Job.Proof = proofOf(t, p, w.Job.Regions)
	asked := 0
	s.refuse = func(string) int { asked++; return http.StatusServiceUnavailable }
	got, err := Gate(context.Background(), w)
	if err != nil || !got.Verdict.Matches() || !got.Verdict.About(w.Job.Regions) || asked > 0 {
		t.Fatalf("%+v, %v, asked %d times", got.Verdict, err, asked)
	}
	// What differs is known too, if not which blocks; nothing is written.
	root := w.Job.Regions[1]
	flip(t, d, root.Start+3*MiB+5000)
	flip(t, d, root.Start+3*MiB+9000)
	flip(t, d, root.End-1) // in a piece that is no whole chunk
	before := readAll(t, d)
	w.Progress = &Progress{}
	got, err = Gate(context.Background(), w)
	if err != nil {
		t.Fatal(err)
	}
	v := got.Verdict
	if r := v.Regions[1]; v.Matches() || v.Regions[0].Read != v.Regions[0].Want || r.Blocks != 2 || r.Want != "" || r.First != 3*MiB {
		t.Errorf("verdict %+v", v)
	}
	if asked == 0 || asked > 20 {
		t.Errorf("asked for bytes %d times", asked)
	}
	// Where nobody counts, as at a boot that puts back whatever differs, nobody asks.
	asked, w.Job.Limit, w.Progress = 0, 0, &Progress{}
	if got, err = Gate(context.Background(), w); err != nil || got.Verdict.Matches() || got.Verdict.Regions[1].Blocks != 2 || asked > 0 {
		t.Errorf("%+v, %v, asked %d times", got.Verdict, err, asked)
	}
	// A repair needs them, and fails without.
	w.Job.Kind, w.Job.Limit, w.Progress = inventory.JobRepair, 1<<20, &Progress{}
	ctx, cancel := context.WithCancel(context.Background())
	w.wait = func(n int) time.Duration {
		if n > 9 {
			cancel()
		}
		return 0
	}
	if _, err := Gate(ctx, w); err == nil || !bytes.Equal(before, readAll(t, d)) {
		t.Errorf("%v; the disk is as it was: %t", err, bytes.Equal(before, readAll(t, d)))
	}
	cancel()
	// They are back.
	s.refuse, w.wait, w.Progress = nil, noWait, &Progress{}
	if got, err := Gate(context.Background(), w); err != nil || !got.Verdict.Matches() {
		t.Errorf("%+v, %v", got.Verdict, err)
	}
}

func TestGateRefusesSumsThatAreNotOfItsJob(t *testing.T) {
	p, _, _, w := provable(t, 2, "esp", "root")
	other := packImage(t, gptImage(t, testImageSize, 9))
	good := proofOf(t, p, w.Job.Regions)
	for what, proof := range map[string]json.RawMessage{
		"another image":    proofOf(t, other, w.Job.Regions),
		"another region":   proofOf(t, p, []inventory.Region{w.Job.Regions[0], {Start: 2 * MiB, End: 3 * MiB}}),
		"a region less":    proofOf(t, p, w.Job.Regions[:1]),
		"the other way":    proofOf(t, p, []inventory.Region{w.Job.Regions[1], w.Job.Regions[0]}),
		"too few sums":     json.RawMessage(strings.Replace(string(good), `"sums":"`, `"sums":"AAAA`, 1)),
		"nothing":          json.RawMessage(`{}`),
		"no JSON":          json.RawMessage(`{`),
		"a negative place": json.RawMessage(`{"size":1048576,"regions":[[-5,3]],"sums":""}`),
	} {
		w.Job.Proof = proof
		if got, err := Gate(context.Background(), w); err == nil {
			t.Errorf("%s: %+v", what, got.Verdict)
		}
	}
}
