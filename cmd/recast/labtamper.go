package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"recast/testenv"
)

func newLabTamper(f *labFlags) *cobra.Command {
	var ask testenv.LabAsk
	var output string
	cmd := &cobra.Command{Use: "tamper MACHINE", Short: "Flip a byte on the disk of a machine of a lab",
		Long:    "Flip every bit of one byte of a partition on the first disk of a machine of a lab, which must be\noff: its gate (boot.every: gate) finds it at the next boot. The same again flips it back.",
		Example: "  recast lab tamper r1u03 --region esp --offset 4096",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.Machines = args
			var did testenv.Tampered
			if err := f.ask(cmd.Context(), "/tamper", ask, &did); err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, did, func(w io.Writer, _ bool) {
				fmt.Fprintf(w, "byte %d of %s is flipped\n", did.At, did.Disk)
			})
		}}
	cmd.Flags().StringVar(&ask.Region, "region", "", "the partition, by GPT name or number")
	cmd.Flags().Int64Var(&ask.Offset, "offset", 0, "the byte, from the partition's beginning")
	_ = cmd.MarkFlagRequired("region")
	addOutput(cmd, &output)
	return cmd
}
