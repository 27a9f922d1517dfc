# SPDX-License-Identifier: Apache-2.0
# Draws the slowdown curves in the file `data`, whose data sets are named in `have`, a panel each; bench/apps.py sets these and
# about. All panels have the same axes, so that they can be compared. Colours are those of Okabe and Ito, which colour-blind
# people can tell apart; points and line styles repeat the difference.
n = words(have)
columns = 4
rows = (n + columns - 1) / columns
height = 130 + 240 * rows
set encoding utf8
set terminal svg size 1200,height font "sans-serif,13" background "white" enhanced
set tics nomirror out textcolor "#444444"
set border 3 linecolor "#777777"
set grid xtics ytics linecolor "#dddddd" linewidth 0.7
unset key
set xrange [6:104]
set xtics ("12.5" 12.5, "25" 25, "50" 50, "75" 75, "100" 100) offset 0, 0.5
set logscale y
set yrange [0.8:500]
set ytics (1, 2, 5, 10, 20, 50, 100, 200, 500)

# Panels lie below a head of 90 and above a foot of 40 points.
top(row) = 1 - (90.0 + 240 * row + 26) / height
bottom(row) = 1 - (90.0 + 240 * (row + 1) - 40) / height
left(column) = 0.055 + column * 0.945 / columns
right(column) = 0.055 + (column + 1) * 0.945 / columns - 0.03

set multiplot
set label 1 "How much slower programs get when only a share of their memory is local" at screen 0.02, 1 - 30.0 / height font ",19"
set label 2 "times as slow (logarithmic), by the share of the working set that may be resident (%)" at screen 0.02, 1 - 57.0 / height textcolor "#444444"
set label 3 about at screen 0.985, 14.0 / height right font ",11" textcolor "#777777" noenhanced
set label 4 "than with all memory local" at screen 0.72, 1 - 30.0 / height textcolor "#0072b2"
set label 5 "than in a plain run" at screen 0.72, 1 - 52.0 / height textcolor "#b04a00"
set label 6 "stopped: at least" at screen 0.72, 1 - 74.0 / height textcolor "#555555"
set object 1 circle at screen 0.705, 1 - 30.0 / height size screen 0.004 fillcolor rgb "#0072b2" fillstyle solid noborder
set object 2 rectangle center screen 0.705, 1 - 52.0 / height size screen 0.016, screen 2.0 / height fillcolor rgb "#d55e00" fillstyle solid noborder
set label 7 "△" at screen 0.7, 1 - 74.0 / height textcolor "#000000"
do for [i=1:n] {
	row = (i - 1) / columns
	column = (i - 1) % columns
	set tmargin at screen top(row)
	set bmargin at screen bottom(row)
	set lmargin at screen left(column)
	set rmargin at screen right(column)
	set title word(have, i) offset 0, -0.7 noenhanced
	plot data index word(have, i) using 1:5 with lines linecolor rgb "#d55e00" linewidth 2 dashtype 2, \
		'' index word(have, i) using 1:3:4 with filledcurves fillcolor rgb "#0072b2" fillstyle transparent solid 0.15 noborder, \
		'' index word(have, i) using 1:2 with linespoints linecolor rgb "#0072b2" linewidth 2.5 pointtype 7 pointsize 0.6, \
		'' index word(have, i) using 1:6 with points linecolor rgb "#000000" pointtype 8 pointsize 1.2
	if (i == 1) {
		do for [k=1:7] { unset label k }
		unset object 1
		unset object 2
	}
}
unset multiplot
