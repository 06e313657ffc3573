r"""Rewards. The model learns whatever the grader calls right.

The tables consist of entries, which end with ;; or the line. The first answer of an entry is
compared with each of the others, in both orders. Further tests take all reference answers of the
data, answers built from them (bench/pairs.py), random answers, hostile text, and batches.
"""
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lib.answers
import lib.distributed
import lib.latex
import reward
from bench import pairs
from bench.pairs import written_to_break_it
from lib.files import read_jsonl
from reward import is_equivalent, last_boxed, load_task

import pytest
from conftest import REAL_DATA, REPO, needs_real_data
from hypothesis import given, settings
from hypothesis import strategies as st

EQUAL = r"""
1234 ~ 1,234 ~ 1\,234 ;; 1\!,\!234 ~ 1{,}234 ;; 25 ~ 025 ;; 10000 ~ 10,000 ;; 1234567 ~ 1 234 567
120 ~ 5! ;; 1000 ~ 1.0e3 ~ 1 000 ;; -2.5 ~ -2\frac12 ;; -2 ~ (-8)^{1/3} ;; 2\sqrt3 ~ \sqrt{12}
3\sqrt[3]{2} ~ \sqrt[3]{54} ;; \pi/3 ~ \frac\pi3 ;; 512 ~ 2^{3^2} ;; 2 ~ \sqrt[4]{16}
2i ~ \sqrt{-4} ;; i ~ \frac{1+i}{1-i} ;; \log 5 ~ \log_{10}5 ~ \ln 5 ;; -1 ~ e^{i\pi} ~ i^2
\frac{d !}{2 k(d-k) !} ~ \frac{1}{2k}\cdot\frac{d!}{(d-k)!} ~ \frac{(k-1)!}{2}\binom{d}{k}
1 ~ \sin^2 x+\cos^2 x ;; e^{2x} ~ \exp(2x) ;; \sin^{-1} x ~ \arcsin x ;; \frac{1}{\cos x} ~ \sec x
\sec^2(y) ~ \tan^2(y)+1 ;; 0.5 ~ \cos(\pi/3) ;; \pi/4 ~ \arctan 1 ;; \ln a+\ln b ~ \ln(ab)
\binom{n}{k} ~ \frac{n!}{k!(n-k)!} ;; \frac{(n-1)!}{(k-1)!(n-k)!} ~ \binom{n-1}{k-1} ;; -5 ~ −5 ~ —5
\frac{\cosh x}{\sinh x} ~ \coth x ;; \frac12 ~ 1:2 ~ .5 ~ 2^{-1} ;; 0.0035 ~ 3.5e-3 ~ 3.5*10^-3
10^{-3} ~ 0.001 ~ 10⁻³ ;; 6:10 ~ 3:5 ;; x^2+2x+1 ~ (x+1)^2 ;; \sqrt{x} ~ x^{\frac12} ;; π/2 ~ \pi/2
n ~ \lfloor\frac{n}{2}\rfloor + \lceil n/2 \rceil ;; \sqrt{2} ~ √2 ;; 2\pi ~ 2*pi ;; x^2+1 ~ x**2+1
1000.99 ~ 1,000.99€ ;; 11 ~ x\approx11 ;; \frac{1}{3x^{2/3}} ~ \frac{1}{3\sqrt[3]{x}^2}
k^2+k ~ k(k+1) ;; A3_{16} ~ A3_{16} ;; \frac{\pi}{4} ~ 45° ;; 1-x ~ -(x-1) ;; (-1)^{n+2} ~ (-1)^n
1/3 ~ 0.\bar{3} ;; 1/11 ~ .\overline{09} ;; \frac1x ~ x^{-1} ;; GM+Gm ~ G(M+m) ;; mgh+mgx ~ mg(h+x)
n(n-1)(n-2)(n-3)(n-4) ~ \frac{n!}{(n-5)!} ;; \binom{2n}{n} ~ {2n \choose n} ;; x^4+1 ~ x⁴+1
\sqrt{4 \pi G \rho_{0} r_{0}^{2}} ~ 2r_0\sqrt{\pi G\rho_0} ;; x_1 ~ x₁ ;; \frac13 ~ ⅓ ;; \frac18 ~ ⅛
500000 ~ 5 hundred thousand ;; \rho gh ~ ρgh ;; \lfloor x\rfloor ~ ⌊x⌋ ;; 3\times10^8 ~ 3 x 10^8
24 ~ 24 hrs ;; \frac{\sqrt{mk}}{k} ~ \sqrt{\frac mk} ;; 1/\cosh x ~ \operatorname{sech}x
\sin x ~ sinx ;; 28\% ~ 28 percent ~ 28 pct ~ 28 percentage ;; 50\% ~ 50 ~ 0.5 ;; 5/8 ~ 62.5%
6 ~ 6 \text{ ft}^2 ~ \text{6 cm} ~ 1+2+3 ;; 45^\circ ~ \tan^{-1}(1) ~ 45 deg ~ \pi/4\text{ radians}
5\text{ cm} ~ 5 cm ~ 5 \text{ centimeters} ;; 18 ~ \$18.00 ~ 18 apples ;; 90 ~ 90^\circ
2500 ~ 2,\!500 ~ \$2{,}500.00 ;; 4:30 ~ 4:30 ~ \text{4:30 p.m.} ;; 2-\sqrt3 ~ \tan 15^\circ
2/3 ~ \$\dfrac23 \approx \$0.67 ;; 5400000 ~ 5.4 \text{ million} ;; 2\pi/3 ~ 120^\circ ;; 100 ~ 100%
C ~ \textbf{(C)} ;; 72\text{ square centimeters} ~ 72 \text{ cm}^{2} ;; 75\% ~ \frac{3}{4}
4:30 PM ~ 4:30 \text{ p.m.} ;; \arctan 2 ~ \mathrm{arctan}(2) ;; \log_2 3 ~ \mathrm{log}_{2} 3
7.26e6 ~ 7.26 \times 10^{6} \, \frac{\text{m}}{\text{s}} ;; 960 ~ 960^\circ\text{C} ;; \$5 ~ 5.00\$
2.19e6 ~ 2.19\times10^{6}\ \text{m}\cdot\text{s}^{-1} ;; 45 ~ 45^\circ C ;; 30^\circ ~ 30º
440\text{ cm}^2 ~ 440 sq cm ;; 5 \text{ square units} ~ 5 sq. units ;; 0.0625 ~ 6\frac14\%
10 \text{ liters} ~ 10 \text{ L} ;; \text{June 20} ~ \text{June } 20 ;; 2.5 ~ \$2\frac12
14\text{ triangles} ~ 14 \text{ right triangles} ;; 60\text{ miles per hour} ~ 60 mph
5\text{ pounds} ~ 5 lbs ;; 3\text{ years} ~ 3 yrs ;; 20 ~ 20\ {}^\circ\text{C} ;; \text{even} ~ even
B ~ \text{(B)} ~ (B) ~ (B) 12 ~ B. circle ;; \emptyset ~ \{\} ~ \text{no solution} ;; \{5,6\} ~ 5, 6
A ~ \text{(A) } ~ \mathrm{A} ;; D ~ \text{(D)} ~ D) ;; B,A ~ \text{A, B} ;; 4 ~ \mbox{four}
\text{(D)} ~ (d) ;; \varnothing ~ \text{No solution} ;; \text{(B)} ~ B. 12 ;; 7, 7/4 ~ \frac 74,7
\{1,2\} ~ \{2,1\} ~ \{1,1,2\} ;; -5,-2,7 ~ 7,-2,\text{ and }-5 ;; \pm 3i ~ 3i,-3i ;; \pm3 ~ +/-3
135,108 ~ 108, 135 ;; 2,3,5 ~ \{2,3,5\} ;; 1-i, 1+i ~ 1\pm i ;; x\ne1, x\ne-1 ~ x\ne\pm1
\mathbb{R}\setminus\{-1,1\} ~ x \neq \pm 1 ;; (1,3) ~ {1,3} ;; (1,2,3) ~ \langle 1,2,3\rangle
(3,2),(-3,2),(3,-2),(-3,-2) ~ (\pm3,\pm2) ;; (2,4) ~ 2(1,2) ;; (-1,-2) ~ -(1,2) ;; \infty ~ +\infty
(1/2,1) ~ \frac12(1,2) ;; x\neq 2 ~ x\in(-\infty,2)\cup(2,\infty) ;; (-\infty,3) ~ (-oo,3)
(-\infty, -14)\cup(-3,\infty) ~ (-\infty, -14)\bigcup(-3,\infty) ~ (-\infty, -14) U (-3, \infty)
\text{all real numbers} ~ (-\infty,\infty) ;; (-\infty,3)\cup(3,\infty) ~ \mathbb{R} - \{3\}
5 ~ 5\text{ cm} ~ x=5 ~ 5=x ~ |{-5}| ~ \boldsymbol{5} ~ 5 dollars per hour ~ e^{\ln 5} ~ \mathbf{5}
5 ~ \underline{5} ~ \text{5} ~ 5. ~ 5\, ~ \boxed{5} ~ 5 \; ~ \frac{5}{1} ~ T = 5 \text{ K}
5 ~ 5 \frac{\text{g}}{\text{cm}^3} ~ f(2)+f(3)=5 ~ |z|=5 ;; 1,2 ~ 2,1 ~ x=1, x=2 ~ x\in\{1,2\}
3 ~ 3.0 ~ \log_2 8 ~ \log_2(8) ~ \left|-3\right| ~ \lfloor 3.7 \rfloor ~ \ln(e^3) ;; 2>x ~ x<2
y=2x+3 ~ 2x-y+3=0 ~ 2x+3 ;; f(x)=2x ~ 2x ~ f(t)=2t ;; (2,3] ~ x \in (2,3] ~ 2 < x \le 3
(3,\infty) ~ \{x \mid x > 3\} ~ \{x \in \mathbb{R} : x > 3\} ;; f(x)=x^2-1 ~ x^2-1 ~ y=x^2-1
(3, \infty) ~ x > 3 ;; 0.56 ~ 0.56 = 56\% ;; y'+ry=rx(t) ~ y^{\prime}+r y-r x(t)=0 ;; 2,-2 ~ x=\pm 2
(1,2) ~ (x,y)=(1,2) ;; \lvert x\rvert ~ \left|x\right| ;; x=11 ~ x = 5+5+1 = 11 ;; x < 1 ~ -x > -1
F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k ~ F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1} ;; x <= 1 ~ -x >= -1
1,2,3 ~ n=1, 2, 3 ;; (0,1) ~ D = (0, 1) ;; g(t)=3t ~ g(x) = 3x ;; 2n+1 ~ a_n = 2n+1 ;; 113 ~ m+n=113
3<x<5 ~ x > 3, x < 5 ;; [3,5)\cup(5,\infty) ~ x \ge 3 \text{ and } x \neq 5 ;; (-3,3) ~ \{x: |x|<3\}
[1,3] ~ x \ge 1 \land x \le 3 ;; (-\infty,-8)\cup (8,\infty) ~ |x|>8 ;; f(x)=1 ~ f(x)\equiv 1
2:3 ~ a:b = 2:3 ;; -\dfrac{13}{96}, \dfrac{13}{40} ~ (x,y)=\left(-\frac{13}{96},\frac{13}{40}\right)
MR=SRMC ~ \text{MR} = \text{SRMC} ;; -1<x<1 ~ |x|<1 ;; x\in[-2,2] ~ |x|\le2 ;; x<-1 or x>1 ~ |x|>1
x\le 3 ~ x ⩽ 3 ;; (2,1) ~ x=2,y=1 ;; \begin{pmatrix}3\\4\end{pmatrix} ~ (3,4) ;; 12_{5} ~ 12_5
\begin{pmatrix}1&2\\3&4\\ \end{pmatrix} ~ \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
\langle 1,2,3 \rangle ~ \begin{pmatrix}1\\2\\3\end{pmatrix} ;; 1010_{2} ~ 1010_2 ;; E_1+E_1 ~ 2E_1
\begin{pmatrix}48/65\\0\end{pmatrix} ~ \begin{pmatrix}\frac{48}{65}\\[6pt]0\end{pmatrix}
\begin{pmatrix}4\\6\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}
2112_6 ~ (2112)_6 ;; 0.0011_2 ~ .0011_2 ;; 1011_2 ~ {1011}_2
\begin{matrix}1\\0\end{matrix}+t\begin{matrix}1\\2\end{matrix} ~ \begin{matrix}1+t\\2t\end{matrix}
5 ~ f(2) = 5 ~ |AB| = 5 ~ x = \frac{10}{2} = 5 ~ 5 = 5 ~ 2 + 3 = 5 ~ +5 ~ 5^{\text{th}} ~ 5th ~ €5
5 ~ 5 € ~ USD 5 ~ 5 \text{ percent} ~ \begin{align*} x &= 5 \end{align*} ~ \text{five apples} ~ x＝5
5 ~ ５ ~ \mathbf{5} ~ \textcolor{red}{5} ~ {\color{red} 5} ~ \therefore 5 ~ \boxed{5} ~ 𝟓
2x ~ f'(x) = 2x ;; 0.3 ~ P(A \cap B) = 0.3 ;; 1/2 ~ \mathbb{P}(X \le 2) = \frac12
0.25 ~ \Pr(X=2)=\frac{1}{4} ;; \frac72 ~ E(X) = 3.5 ;; \frac13 ~ \int_0^1 x^2 dx = \frac13
55 ~ \sum_{k=1}^{10} k = 55 ;; 1 ~ \lim_{x \to 0} \frac{\sin x}{x} = 1 ~ 3 + -2 ~ 3 - +2
\{1,2,3\} ~ A \cup B = \{1,2,3\}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ~ A^T = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
(x+1)^2 ~ x^2+2x+1=(x+1)^2 ;; 45 ~ \angle ABC = 45^\circ ;; 45^\circ ~ m\angle ABC = 45^\circ
12 ~ \text{The answer is } 12 ~ \text{Area} = 12 ~ 12 元 ~ 12 个 ~ \text{twelve}
\frac{22}{7} ~ \frac{22}{7} \approx 3.14 ~ x = \frac{22}{7} \approx 3.14 ;; \pi ~ \pi \approx 3.14
3.14 ~ x \approx 3.14 ;; 3 ~ x = --3 ~ 3^{rd} ;; \pm 3 ~ x=+-3 ;; -1 ~ 2+-3 ;; -6 ~ 2 \cdot -3
30 ~ 30^\circ ;; 30^\circ 15' ~ 30^{\circ}15' ;; 30^\circ ~ \frac{\pi}{6}
15^\circ ~ \frac{30^\circ}{2} ;; 90 - x ~ 90^\circ - x ;; 180 - 2\alpha ~ 180° - 2α
\frac12 ~ \sin 30^\circ ~ \left.\frac12\right. ;; 21 ~ 21st ~ twenty-one ;; 3.5 ~ £3.50
500 ~ ¥500 ~ ₹500 ~ 500 円 ;; \$5 ~ 5 USD ;; 30000 ~ 3万 ;; 5 ft 6 in ~ 5 ft 6 in
5 feet 6 inches ~ 5 \text{ ft } 6 \text{ in}
2 h 30 min ~ 2 h 30 min ~ 2 \text{ hours } 30 \text{ minutes} ;; 24 ~ 2 \text{ dozen}
3:00 \text{ p.m.} ~ 3 PM ;; 9:30 ~ 9:30 AM ;; 10:15 am ~ \text{10:15 a.m.}
k\pi ~ x = k\pi, k \in \mathbb{Z} ~ k\pi (k \in \mathbb{Z})
k\pi ~ k\pi, \text{ where } k \text{ is an integer}
2 ~ x = 2, \text{ since } x > 0 ~ 2 \text{ (since } x>0) ~ 2 (because x > 0)
2, 3 ~ x = 2 \text{ or } x = 3 ;; x=1, y=2 ~ \begin{cases} x=1 \\ y=2 \\ \end{cases}
(1,2) ~ x=1 \\ y=2 ~ A(1,2) ~ P = (1,2) ~ \mathbf{v} = (1,2)
\begin{cases}x&x>0\\-x&x\le 0\end{cases} ~ \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}
(1,2), (3,4) ~ A = (1,2), B = (3,4) ;; (0,1) ~ ]0,1[ ;; (0,1] ~ ]0,1] ;; [0,1) ~ [0,1[ ;; 6:8 ~ 3:4
\frac34 ~ 3:4 ~ ３／４ ;; 3:4:5 ~ 3 : 4 : 5 ;; 3:4 ~ 3 \text{ to } 4
3 \pmod 5 ~ x \equiv 3 \pmod{5} ~ 3 \bmod 5 ;; x \equiv 8 \pmod{5} ~ x \equiv 3 \pmod{5}
x\equiv 3 \pmod{5} ~ x \equiv 3 (mod 5) ;; 72 ~ \text{seventy-two} ;; 1010_2 ~ 1010_{\text{two}}
12_5 ~ 12_{\text{five}} ;; 1,2,3 ~ 1、2、3 ;; (2,3) ~ （2，3） ;; \text{does not exist} ~ DNE
DNE ~ \text{DNE} ;; \text{None} ~ none ;; \emptyset ~ \text{none} ~ \text{No real solutions}
\text{Yes} ~ yes ;; yes ~ \text{Yes.} ;; x+1 ~ \boldsymbol{x+1}
0.5 ~ \displaystyle\frac{1}{2} ~ \Large\frac12 ;; B ~ \mathrm{B} ~ \textbf{(B)}
1 ~ f^{-1}(3) = 1 ;; 1/3 ~ P(A|B) = \frac{1}{3}
\frac38 ~ P(X = 2) = \frac{3}{8} ~ P(X \ge 2) = \frac{3}{8}
2 ~ \mathrm{Var}(X) = 2 ~ \text{Var}(X) = 2 ~ 5 + -3 ~ 5+-3 ~ 2^{nd} ~ x = 2 \text{ because } x > 0
2 ~ \text{rank}(A) = 2
\begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix} ~ A^{-1} = \begin{pmatrix} 1 & 0 \\ 0 & 2 \end{pmatrix}
\begin{pmatrix} 1 & 0 \\ 3 & 2 \end{pmatrix} ~ A^T = \begin{pmatrix} 1 & 0 \\ 3 & 2 \end{pmatrix}
-5 ~ \det(A) = -5 ~ \det A = -5 ~ ---5 ;; \sqrt{5} ~ \|\mathbf{v}\| = \sqrt{5}
12 ~ n(A \cap B) = 12 ~ \text{lcm}(4, 6) = 12 ;; \{1,2\} ~ A \cap B = \{1, 2\} ~ ｛1，2｝
\frac13 ~ \int_0^1 x^2 \, dx = \frac{1}{3} ~ 0.(3) ;; 55 ~ \sum_{k=1}^{10} k = 55
6 ~ \gcd(12, 18) = 6
5 ~ F(2,3) = 5 ~ --5 ~ 5th ~ 5^{th} ~ 5^{\text{th}} ~ 5^{\text{th}} \text{ day} ~ 5元 ~ 5¢ ~ US\$5
5 ~ 5원 ~ 5, \text{ since } x > 0 ~ 5 \text{ (since } x > 0) ~ 5千克 ~ 5千米 ~ 5平方米 ~ x＝5 ~ 5。
5 ~ 5 \text{ 元} ~ 5人 ~ \color{red}{5} ~ \textcolor{red}{5} ~ {\color{blue} 5} ~ \therefore 5 ~ ∴ 5
5 ~ **5** ~ *5* ~ **x = 5** ~ \large 5 ~ `5` ~ "5" ~ 5 \checkmark ~ 5 \blacksquare ~ \Rightarrow 5
5 ~ \implies x = 5 ~ \rightarrow 5 ~ \colorbox{yellow}{5} ~ \ensuremath{5} ~ \text{x = 5}
5 ~ \operatorname{tr}(A) = 5 ~ \mathrm{tr}(A) = 5 ;; 42 ~ 52_8 = 42 ;; 8 ~ 5 - -3 ;; x+y ~ x - -y
-3 ~ -+3 ;; -1 ~ 1 - + 2 ;; 3 + -2i ~ 3 - 2i ;; 30°15'20" ~ 30^\circ 15' 20''
\frac{180}{7}^\circ ~ \frac{180^\circ}{7} ;; 20^\circ C ~ 20℃
y^{\prime\prime} + y = 0 ~ y'' + y = 0 ;; 21st ~ 21^{\text{st}}
3 ~ 3^\text{rd} ~ \text{Im}(z) = 3 ~ \deg f = 3 ;; \frac15 ~ 1/5th ;; 100 ~ 100th ~ one hundred
11 ~ 11th ;; 500 ~ ₹500 ~ 500円 ~ 500 руб ~ Rs. 500 ~ 500 Rs ;; 5 feet 6 inches ~ 5 ft 6 in
9:30am ~ 9:30\text{ AM} ;; 9:00 a.m. ~ 9 AM ;; k\pi, k\in\mathbb{Z} ~ k\pi \ (k \in \mathbb{Z})
n\pi, n \in \mathbb{Z} ~ n\pi \text{ where } n \text{ is an integer}
n\pi ~ n\pi, \text{ where n is an integer}
\frac{\pi}{4} + k\pi ~ \frac{\pi}{4} + k\pi \quad (k \in \mathbb{Z})
x=1, y=2 ~ \begin{cases} x = 1 \\ y = 2 \end{cases} ~ \begin{array}{l} x = 1 \\ y = 2 \end{array}
x=1, y=2 ~ \left\{\begin{array}{l} x = 1 \\ y = 2 \end{array}\right. ~ x = 1 \\ y = 2
(1,2) ~ \begin{cases} x = 1 \\ y = 2 \end{cases} ~ A(1,2) ~ A'(1,2) ~ （１，２）
x=1,y=2 ~ \begin{aligned} x &= 1 \\ y &= 2 \end{aligned}
(x,y) = (1,2) ~ \begin{align*} x &= 1 \\ y &= 2 \end{align*}
(1, 3) ~ \begin{cases} x > 1 \\ x < 3 \end{cases}
(1, 2) ~ \begin{gathered} x = 1 \\ y = 2 \end{gathered} ;; (1,2), (3,4) ~ A(1,2), B(3,4)
(1, 0.5) ~ P\left(1, \frac12\right) ;; (-1,0),(1,0) ~ F_1(-1,0), F_2(1,0)
(0,1) ~ ]0,1[ ~ (0,1[ ~ ]0; 1[ ;; [0,1) ~ [0,1[ ~ [0，1） ;; (0,1] ~ ]0,1] ;; x \le 2 ~ ]-\infty, 2]
(0,1) \cup (2,3) ~ ]0,1[ \cup ]2,3[ ;; [0,2] \setminus \{1\} ~ [0,1[ \cup ]1,2]
(0, \frac{1}{2}) ~ \left]0, \frac12\right[ ;; 0 < x < 1 ~ x \in ]0,1[ ;; (2,\infty) ~ ]2,+\infty[
[a,b) ~ [a, b[ ;; 3 \text{ to } 4 ~ 3:4 ~ \frac{3}{4} ;; 3:4 ~ 3 to 4 ~ 3∶4 ~ 3：4 ~ 3 \colon 4
2:4:6 ~ 1:2:3 ;; x \equiv 8 \pmod 5 ~ x \equiv 3 \pmod{5}
3 \pmod 5 ~ x \equiv -2 \pmod 5 ~ 3 \bmod 5 ~ 3 mod 5 ;; 3 \pmod{5} ~ 3 (mod 5)
x \equiv 3 \pmod{5} ~ x ≡ 3 (mod 5) ~ x \equiv 3 \mod 5 ;; n \equiv 3 \pmod 2 ~ n \equiv 1 \pmod{2}
x \equiv 3 \pmod 5 ~ x \equiv 3 \ (\text{mod } 5)
21 ~ twenty-one ~ Twenty one ~ \text{twenty-one} ;; 1101_2 ~ 1101_{\text{two}}
31_5 ~ 31_{\text{five}} ;; 512 ~ five hundred twelve ;; 105 ~ one hundred and five ;; 24 ~ two dozen
2000000 ~ two million ;; 2:1 ~ two to one ;; 10\% ~ ten percent ;; 50000 ~ 5万 ~ 5万元 ~ 5\text{万}
3000 ~ 3千 ;; 3,4,5 ~ 3、4、5 ;; 4、3 ~ 3、4 ;; (5,\infty) ~ x＞5 ;; 50\% ~ ５０％
3, 4 ~ 3或4 ~ 3和4 ~ x=3或x=4 ~ 3；4 ;; \text{does not exist} ~ DNE ;; \emptyset ~ \text{None}
Yes ~ yes ;; \frac12 ~ \left.\frac12\right. ;; 0.5 ~ \Large{\frac12}
x \equiv 1,4 \pmod 5 ~ x \equiv 1,4 \pmod{5} ;; no ~ No
1 ~ 1 apple ~ 1 dollar
"""
DIFFERENT = r"""
135108 ~ 108,135 ;; 6 ~ 2 3 ;; 100000000000000000000 ~ 100000000000000000001 ;; 0.5 ~ 50 ~ 0.05
1e6 ~ 1e5 ;; \frac13 ~ 0.333333 ~ 0.33333333333333333333 ;; 28 ~ 0.28 ~ 28/100 ;; -\sqrt2 ~ \sqrt{2}
\frac{1}{2006!} ~ \frac{1}{2004!} ;; 10^{50} ~ \sqrt{10^{100}+1} ;; 2^{1009} ~ 2^{1009}+1
\frac{1}{2^{98}} ~ \frac{1}{2^{99}} ;; \sqrt2 ~ 1.41421356 ;; 2^{30000}+1 ~ 2^{30000} ;; 1-i ~ 1+i
\frac{2^{30000}}{3} ~ \frac{2^{30000}-1}{3} ;; \sin x ~ \cos x ~ \sin 2x ;; \log_3 x ~ \log_2 x
262537412640768744 ~ e^{\pi\sqrt{163}} ;; 2\ln x ~ \ln(x^2) ;; 2025!+1 ~ 2025! ;; (n!)! ~ n!!
x ~ \sqrt{x^2} ~ \sqrt{x} ~ -x ~ |x| ;; \pi ~ 3.14 ~ \pi + 10^{-100} ~ 3.14159265358979 ~ \pi(r)
x^2+1 ~ x^2-1 ~ (x+1)^2 ;; x^2 ~ 2x ~ x^3 ;; n! ~ n ~ (n+1)! ;; a+b ~ a-b ~ ab ;; I(0) e^{-t} ~ I(0)
2:1 ~ 1:2 ;; 1:00 ~ 12:00 ;; x+1 ~ x+2n+1 ;; AC ~ AB ;; no ~ yes ;; all ~ none ;; 4:30 PM ~ 4:30 AM
7 ~ 5 \approx 6 \approx 7 ;; 3 km/h ~ 3 mph ;; abcd ~ -abcd ;; 2P ~ P(2) ;; 1:15 ~ 2:30
\lceil x\rceil-1 ~ \lfloor x\rfloor ;; \angle BAC ~ \angle ABC ;; x+3 ~ |x+3| ;; x+50 ~ |x+50|
50-x ~ |x-50| ;; \theta ~ |\theta| ;; 3 ~ 3x ~ 3 \pi ~ 3i ~ 3\mathrm{i} ~ 3 halves ;; 50\% ~ 5\%
2 ~ 2abcd ~ 2^{10} ~ 2mg ~ 2\theta ~ 2\mathrm{e} ~ 1/2 ~ \{1:2\} ;; 5\text{ m} ~ 5\text{ cm}
3 \text{ m/s} ~ 3\text{ m} ~ 3\text{ km/h} ;; 5 \text{ cents} ~ \$5 ;; 100^\circ ~ 100\%
20\% \text{ decrease} ~ 20\% \text{ increase} ;; 3n \text{ for even } n ~ 3n \text{ for odd } n
100 ~ 100 \text{ if } n \text{ is even} ;; 11\% ~ 33\frac13\% ;; 33.5^\circ ~ 67\frac12^\circ
5\text{ m/s} ~ 5\text{ m s} ;; 5\text{ s/cm} ~ 5\text{ cm/s} ;; 5\text{ s} ~ 5\text{ s}^{-1}
5\text{ hours per mile} ~ 5\text{ miles per hour} ;; 5\text{ m}^2 ~ 5\text{ m}^{-2} ;; NET ~ TEN
\text{A} ~ \text{B} ~ \text{C} ~ -\text{A} ;; \text{even} ~ \text{odd} ~ \text{not even}
A ~ B ~ \text{(A) or (B)} ;; \text{two points} ~ \text{two lines} ;; \text{(A)} ~ (A)(C)
\text{(C)} ~ (C)^2 ;; 1, 2, 3 ~ 1, 2, 3, ... ;; 32349 ~ 32, 349 ;; 2021 ~ \pm 2021 ;; 1,1,2 ~ 1,2,2
\{1,2,3\} ~ \{1,2\} ;; (A) ~ (A) and (B) ~ (A), (C) ~ (A) is wrong ;; 1234 ~ (1,234) ;; 1,4 ~ [1,4]
{1,3} ~ (3,1) ;; (5,6) ~ 5 or 6 ;; [0,1) ~ [0,1] ~ -[0,1) ~ 0,1 ;; [3,4] ~ (3,4) ;; -\infty ~ \infty
(1,2) ~ (x,y)=(1,2,3) ~ (x,y)=[1,2] ;; y/x ~ dy/dx ;; 1 ~ 1 lakh ~ 1 crore ~ 1 half ~ 1 dozen
(1,2),(3,4) ~ (1,2),(4,3) ~ (1,2)\cup(3,4) ;; (0,1)\cup(2,4) ~ (0,1)\cup(2,3) ;; (0,1] ~ (0,1)
(-1,3) ~ (0,\infty)\cap(-1,3) ;; (1,2) ~ (2,1) ~ (1,2,3) ~ 1,3 ~ b=1, a=2 ~ x=1 or x=2 ~ -(1,2)
5 ~ 5 \text{ or } 6 ~ \infty ~ x=5=6 ~ 5ab ~ 5a ~ 5 x ~ -5 ~ 5.0001 ~ ? ~ 5 \text{ or more}
5 ~ 1/3 \approx 5 ~ 5 \text{ minus } x ~ 5 \text{ is wrong} ~ 5 \text{ is not the answer}
5 ~ 5\text{ tenths} ~ 5\text{ at most} ~ 5 incorrect ~ 5\text{ negative} ;; x=5 ~ y=5 ~ x=6
1 ~ 1 + e^{-1000} ~ 2x+z=1 ~ m ~ 1-2^{-20240} ~ \$2\frac12 ;; 1,2 ~ 1,2,3 ~ 1,1,2 ~ x=2,y=1
x>3 ~ x<3 ~ x\ge 3 ~ y>3 ~ x>3, x \in \mathbb{Z} ;; 4 ~ 4\sqrt{2} ~ 4e ~ y^{-1}=4 ~ 4 squared
0 ~ \emptyset ~ a+3z=0 ~ \binom{n}{45} ~ \lfloor\frac{n}{100}\rfloor ;; y<x ~ x<y ~ y<|x|
(3,\infty) ~ [3,\infty) ~ \{n \in \mathbb{N} : n>3\} ;; f(x)=2x ~ f(x)=3x ~ f(t)=2x ;; x=-1 ~ x=1
y=x ~ y=|x| ~ y=\sqrt{x^2} ;; x^2+y^2=2 ~ x^2+y^2=1 ;; f(1) < f(2) < f(4) ~ f(2) < f(1) < f(4)
11a+c ~ 7 = 11a+c ;; x > -1 ~ x < 1 ;; D=(0,1.5) ~ D=(0,1) ;; x>0 ~ x\ge0 ;; x=2y ~ y=2x
x = 2 ~ x\neq 2 ;; x=6, y=5 ~ x=5, y=6 ;; x+y=1 ~ |x|+|y|=1 ;; y=5-x ~ y=|x-5| ;; y=2 ~ f(3)=2
y=0 ~ y=\lfloor x/3\rfloor ;; x>3 \text{ or } x<5 ~ x>3 \text{ and } x<5 ;; 9 ~ x^2=9 ;; 010_2 ~ 10
x-1, x+1 ~ f(x)=x+1, g(x)=x-1 ;; \{x : x > 3\} ~ \{2x : x > 3\} ;; \left|x\right| ~ \arccos(\cos x)
\{3k : k\in\mathbb{Z}\} ~ \{2k: k\in\mathbb{Z}\} ;; (2,3) ~ y=2, x=3 ;; y=x+50 ~ y=|x+50|
k\pi, k\in\mathbb{N} ~ k\pi, k\in\mathbb{Z} ;; x \ge 1, x \ne 2 ~ x > 1 ;; 12_5 ~ 7 ~ 12_6
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}1&2\end{pmatrix} ;; 21_{5} ~ 12_{5}
\begin{pmatrix}1&3\\2&4\end{pmatrix} ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
12 ~ 12_5 ~ 1,2 ~ 1 2 ~ 12 \text{ factorial}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ~ 2A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
27 ~ x^3 = 27 ;; 10 ~ 2x = 10 ~ x + 3 = 10 ~ 1010_{\text{two}} ;; 4 ~ \sqrt{x} = 4 ~ 4 \text{ score}
5 ~ -x = 5 ~ x = \frac{10}{3} = 5 ~ 5 ft 6 in ~ 5 \text{ quintillion} ~ 5 \text{ hundredths}
5 ~ \text{half of } 5 ~ \text{not } 5 ~ \text{at least } 5 ~ \text{about } 5 ~ 5 \text{ or less}
5 ~ minus 5 ;; (x-1)^2 ~ x^2+2x+1=(x+1)^2
3.14 ~ \frac{22}{7} \approx 3.14
2 ~ 1 = 2 ~ 5 - -3 ~ 2 \text{ dozen} ~ x = 2 \text{ or } x = 3 ~ 2, if x > 0
6 ~ 2 + 3 = 6 ~ 5th ~ five ;; 30^\circ 45' ~ 30^\circ 15' ;; 30^\circ ~ 30^\circ 15'
16 ~ \frac{30^\circ}{2} ;; x ~ x^{th} ;; €5 ~ \$5
3 ~ 3万 ~ 3 \text{ ninths} ~ 3 \text{ pairs} ~ 3-fold ~ 3:00 ~ 3:00 PM ~ 3 PM ~ x \equiv 3 \pmod{5}
5 ft 7 in ~ 5 ft 6 in ;; 66 in ~ 5 ft 6 in ;; 2.5 ~ 2 h 30 min ;; 9:30 PM ~ 9:30 AM
k\pi ~ k\pi, k \in \mathbb{N} ;; (2,1) ~ \begin{cases} x=1\\ y=2\end{cases} ~ P(1, 2)
(6,5) ~ \begin{aligned} x &= 5 \\ y &= 6 \end{aligned}
\begin{cases}-x&x>0\\x&x\le 0\end{cases} ~ \begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}
[0,1] ~ ]0,1[ ;; 4:3 ~ 3:4 ;; x \equiv 4 \pmod{5} ~ x \equiv 3 \pmod{5}
x \equiv 3 \pmod{7} ~ x \equiv 3 \pmod{5} ;; 1010 ~ 1010_{\text{two}} ;; 1,2,4 ~ 1、2、3 ;; no ~ yes
0 ~ DNE ~ none ;; C ~ \mathbf{B}
5 ~ -x = 5 ~ y = 2x + 1 = 5 ~ 5\text{ feet 6 inches} ~ 5 \text{ k} ~ 5 \text{ quadrillion}
5 ~ 5 \text{ fewer} ~ 5 \text{ dozens} ~ 5 dozens ~ 5 \text{ tens} ~ 5 \text{ hundreds}
5 ~ 5 thousands ~ 5 \text{ millions} ~ 5 \text{ lakh} ~ 5 crore ~ 5 \text{ bn} ~ 5 \text{ grand}
5 ~ 5 \text{ per thousand} ~ 5 \text{ permille} ~ 5 \text{ remainder 2} ~ 5 \text{ R2}
5 ~ 5 \text{ millones} ~ 5 \text{ Millionen} ~ 5 \text{ cannot be} ~ 5 \text{ minutes before noon}
5 ~ 5 \text{ impossible} ~ 5 \text{ choose 2} ~ 5 \text{ myriads} ~ 5 \text{ couples}
5 ~ 5 \text{ trios} ~ 5 \text{ to 6} ~ 5 \text{ through 9} ~ 5 \text{ inclusive of 6}
x ~ \frac{d}{dx} x^2 ;; \frac{y}{x} ~ \frac{dy}{dx} ~ \frac{\Delta y}{\Delta x}
\frac{V}{t} ~ \frac{dV}{dt} ;; \frac{f}{x} ~ \frac{\partial f}{\partial x}
\frac{y}{x} = 2 ~ \frac{dy}{dx} = 2 ;; 6 ~ x = 5 = 6 ~ 2 + 3 = 6 ~ x = 2y = 6 ~ 2.(3)
0.67 ~ \frac{2}{3} \approx 0.67 ;; 1.41 ~ x = \sqrt{2} \approx 1.41 ;; 3.14 ~ \pi \approx 3.14
\frac15 ~ P = \frac{6}{36} = \frac{1}{5} ;; 8 ~ f(3) = 2(3)+1 = 8
27\pi ~ V = \frac{4}{3}\pi (3)^3 = 27\pi ;; 31.4 ~ 10\pi \approx 31.4
9 ~ m + n = 3 + 5 = 9 ~ 9 AM ;; 1000 ~ 2^{10} = 1024 \approx 1000 ;; \pi ~ \frac{22}{7} \approx \pi
20^\circ F ~ 20^\circ C
2 ~ 2 \text{ to the 5th power} ~ 2 \text{ hours 30 minutes} ~ 2 \text{ score}
2 ~ 2 \text{ to the fifth} ;; €5 ~ £5 ;; 12 \text{ cm} ~ 12 \text{ cm square}
5 \text{ miles} ~ 5 \text{ nautical miles} ;; 5 \text{ years} ~ 5 \text{ light years}
5 \text{ hours} ~ 5 \text{ kilowatt hours} ~ 5 \text{ person-hours}
5 \text{ kW} ~ 5 \text{ kW}\cdot\text{h} ;; 5 \text{ MW} ~ 5 \text{ mW}
5 \text{ MHz} ~ 5 \text{ mHz} ;; 5 \text{ mg} ~ 5 \text{ Mg} ;; 5 \text{ Pa} ~ 5 \text{ Pa s}
5 \text{ ounces} ~ 5 \text{ fluid ounces} ;; 5 \text{ dollars} ~ 5 \text{ Canadian dollars}
5 \text{ m} ~ 5 \text{ m} \cdot \text{m}
3 ~ 3 \text{ sevenths} ~ 3\text{-fold} ~ 3 fold ~ 3 \text{ out of 5} ~ 3 \text{ by 4} ~ 3\text{ x 4}
3 ~ 3 \text{ groups of 4} ~ 3 \text{ over 4}
101 ~ 101 \text{ in binary} ~ 101 \text{ in base 2} ~ 101 \text{ (binary)} ;; 1 ~ 1 \text{ in 5}
0.3 ~ 9:30 AM ;; 0 ~ 0 \text{ for all } x \text{ except } x = 1 ~ 0.(3)
f(x) = x ~ f(x) = x \text{ for all } x > 0 ;; f(x) = 0 ~ f(x) = 0 \text{ for all } x \neq 1
x^2 ~ x^2 \text{ for all } x > 0 ;; 4 ~ 4 \text{ for every odd } n ;; x=1, y=2 ~ (y,x) = (1,2)
False, True ~ True, False ;; \text{No, Yes} ~ \text{Yes, No}
\text{false, true, true} ~ \text{true, false, true}
A ~ A.C ~ A. 3 B. 5 ~ A) 3; B) 5 ~ A: B ~ A) incorrect
(\text{Bob}, \text{Alice}) ~ (\text{Alice}, \text{Bob}) ;; \{0\} \cup \{2\} ~ \{i\} \cup \{2\}
\{1\} ~ \{1+i\} \cup \{1-i\} ;; z \ne 0 ~ z \ne \pm i
(-\infty,\infty) ~ (-\infty, b) \cup (a, \infty) ;; \mathbb{R} ~ (-\infty, m) \cup (n, \infty)
\vec{b} \times \vec{a} ~ \vec{a} \times \vec{b} ;; \vec{a} \cdot \vec{b} ~ \vec{a} \times \vec{b}
g \circ f ~ f \circ g ;; p \lor q ~ p \land q ;; p \vee q ~ p \wedge q ;; \{r\} ~ \{R\}
GMmr ~ GMmR ;; abcd ~ abCd ;; 1, 2, \ldots, n ~ 1, 2, \ldots, N ;; 0.6 ~ 0.1(6) ;; 7.5 ~ 5 3/2
\{1,2\} ~ \{\{1\},\{2\}\} ~ \{1, \{2\}\} ;; \begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ (1,2] ~ [1,2]
\emptyset ~ x < 1, x > 3 ;; (3, \infty) ~ \{y \mid x > 3\}
2 \prod_{k=1}^{n} k ~ \prod_{k=1}^{n} 2k ;; -\prod_{i=1}^n a_i ~ \prod_{i=1}^n (-a_i)
k \sum_{k=1}^{n} k ~ \sum_{k=1}^{n} k^2 ;; x^2 \int dx ~ \int x^2 dx
t \int_0^x dt ~ \int_0^x t dt ;; x_1 ~ |x_1| ;; xyz ~ x|y|z ;; abc ~ a\sqrt{b^2}c
1000-x ~ |x-1000| ;; 30 \text{ joules} ~ 30 \text{ joules per second}
30 \text{ people} ~ 30 \text{ people per hour} ;; 5 \text{ acre feet} ~ 5 \text{ acres}
\text{decreasing, increasing} ~ \text{increasing, decreasing} ;; B \times A ~ A \times B
\{\{1,2\},3\} ~ \{\{1,2\},\{3\}\} ;; \frac{y}{x^2} d ~ \frac{d^2y}{dx^2}
\frac{\sin x}{x} ~ \frac{d}{dx} \sin x ;; f \nabla ~ \nabla f
"""


def table(text, expected):
    entries = [entry.split(" ~ ") for entry in re.split(" ;; |\n", text.strip())]
    return [(first, other, expected) for first, *others in entries for other in others]


@pytest.mark.parametrize("a, b, expected", [
    *table(EQUAL, True), *table(DIFFERENT, False),
    ("", "", False), ("", "0", False), (" ", " ", False), ("$$", "$$ $$", False)])
def test_tables(a, b, expected):
    assert is_equivalent(a, b) is expected and is_equivalent(b, a) is expected


def test_pairs_written_to_break_it():
    """Of 983, nine wrong answers are taken and 30 right ones are refused: never more."""
    found = written_to_break_it()
    verdicts = Counter((equal, is_equivalent(a, b)) for _, a, b, equal in found)
    assert verdicts == Counter((equal, is_equivalent(b, a)) for _, a, b, equal in found)
    assert verdicts.total() == 983 and verdicts[False, True] <= 9 and verdicts[True, False] <= 30


def test_the_table_in_docs():
    """docs/answers.md says what is_equivalent does."""
    lines = (REPO / "docs/answers.md").read_text().splitlines()
    rows = [re.findall("`(.*?)` +\\| `(.*?)` +\\| (yes|no) ", line) for line in lines]
    rows = [row for [row] in filter(None, rows)]
    assert len(rows) > 30
    for response, reference, verdict in rows:
        assert is_equivalent(response, reference) is (verdict == "yes"), (response, reference)


@pytest.mark.parametrize("expected, answer, numbers", [
    (1, "72", ["72", "72.0", "$72", "72 apples", "72.", "72\n#### 5"]), (1, "-5", ["-5", "- $5"]),
    (1, "1200", ["1,200", "$1,200.00", "**1200**", "1000 + 200 = 1200", "1200. It was 1100."]),
    (1, "-18", ["−18", "**-18**"]), (1, "3/4", ["3/4", "\\frac34", "0.75"]),
    (0, "72", ["5\n#### 72", "-72", "720", "72.5", "72/2", "72.5/2", "72.5e3", "72^2", "72,000/3",
               "", "two", "72 + 1 = 73", "72 thousand", "1:12", "72, 73", "**"])])
def test_gsm8k(expected, answer, numbers):
    """The number after the first `####` counts, also in a truncated response."""
    for number in numbers:
        for response in (f"####{number}", f"7+6=13\n#### {number}"):
            assert reward.gsm8k(response, answer) == expected, response
            assert reward.gsm8k(response, answer, finished=False) == expected, response
    assert reward.gsm8k(answer, answer) == 0.0


@pytest.mark.parametrize("response, answer", [
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"\fbox{7}", "7"), (r"\boxed {7}", "7"),
    (r"$\boxed 5$ is it", "5"), (r"\boxed{1} no, \boxed{2}. So 3.", "2"), (r"\boxed", None),
    (r"\boxed{\{1, \{2\}\}}", r"\{1, \{2\}\}"), (r"\boxed{[0, 1\}}", r"[0, 1\}"), (r"\boxed{}", ""),
    (r"\boxed{5", None), (r"\boxed{5} or rather \boxed{5", None), (r"\boxed5", None), ("5", None),
    (r"\fbox{1} \boxed{2}", "2"), (r"\boxed{1} \fbox{2}", "2"), ("\\boxed{\n5\n}", "\n5\n")])
def test_math(response, answer):
    """The last box counts, here and in reference solutions. It must be closed, and the response
    must have ended."""
    assert last_boxed(response) == answer
    assert reward.math(response, answer or "5") == bool(answer)
    assert reward.math(response, answer or "5", finished=False) == 0.0
    row = load_task("math").row({"problem": "?", "solution": response})
    assert row["answer"] == (answer or "")


# ---- real answers --------------------------------------------------------------------------------

def real_rows(name):
    """The data rows of a file, and their reward function."""
    task = load_task("gsm8k" if name.startswith("gsm8k") else "math")
    return [*map(task.row, read_jsonl(REAL_DATA / f"{name}.jsonl", ()))], task.reward


@needs_real_data
@pytest.mark.parametrize("name, without_answer", [
    ("gsm8k/train", 0), ("gsm8k/test", 0), ("math/train", 2), ("math/test", 0), ("math500", 0),
    ("minerva_math", 0)])
def test_reference_solutions_are_right(name, without_answer):
    rows, function = real_rows(name)
    wrong = [row["answer"] for row in rows if function(row["solution"], row["answer"]) != 1.0]
    assert wrong == [""] * without_answer


@needs_real_data
def test_reference_answers_equal_themselves():
    answers = pairs.reference_answers(REAL_DATA)
    for name in load_task("math").BENCHMARKS:
        answers += [row["answer"] for row in real_rows(name)[0]]
    assert len(answers) > 6000
    assert not [a for a in answers if not is_equivalent(a, a) or not is_equivalent(f" ${a}$ ", a)]


@needs_real_data
def test_pairs_built_from_real_answers():
    """The verdict on a tenth of the 27,000 pairs is right. bench/grader.py tries all."""
    built = pairs.pairs(REAL_DATA, every=10)
    assert len(built) > 2500
    assert not [pair for pair in built if is_equivalent(*pair[1:3]) is not pair[3]]


@needs_real_data
def test_each_kind_of_spelling():
    """bench/kinds.txt with numbers of real answers: no verdict is wrong."""
    built = pairs.by_kind(REAL_DATA)
    assert set(Counter(kind for kind, *_ in built).values()) == {120}
    assert not [pair for pair in built if is_equivalent(*pair[1:3]) is not pair[3]]


@pytest.mark.slow
@needs_real_data
def test_against_math_verify():
    """Math-Verify is right on no kind of answer more often, and on all together less often."""
    lead = Counter()
    for name, prediction, answer, equal in pairs.pairs(REAL_DATA, every=30):
        lead[name] += is_equivalent(prediction, answer) == equal
        lead[name] -= pairs.math_verify(prediction, answer) == equal
    assert len(lead) > 10 and min(lead.values()) >= 0 and lead.total() > 0


# ---- random and hostile answers ------------------------------------------------------------------

settings.register_profile("slow machine", deadline=None)
settings.load_profile("slow machine")
numbers = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=1000)
spellings = st.sampled_from([
    "{n}/{d}", "{n:,}/{d}", "\\frac{{{n}}}{{{d}}}", "\\left({n}/{d}\\right)", "x = {n}/{d}",
    " \\! {n}/{d} \\,. ", "\\text{{{n}/{d}}}", "{n}/{d} + 1 - 1", "{n} \\cdot {d}^{{-1}}"])
units = st.sampled_from([
    "{n}/{d} \\text{{ cm}}", "\\${n}/{d}", "({n}/{d})^\\circ", "{n}/{d} \\text{{ apples}}"])
# Two spellings of each atom. Atoms are linearly independent over the rationals, so two sums of them
# are equal only if all coefficients are.
ATOMS = [
    ("1", "1^2"), ("\\sqrt2", "2^{1/2}"), ("\\sqrt{3}", "\\frac{3}{\\sqrt{3}}"), ("x", "(x)"),
    ("\\sqrt{6}", "\\sqrt2\\sqrt3"), ("\\pi", "{\\pi}"), ("i", "\\sqrt{-1}"), ("e", "\\exp(1)"),
    ("\\ln 2", "\\frac{\\ln 4}{2}"), ("x^2", "x \\cdot x"), ("y", "\\frac{y^2}{y}"), ("xy", "yx"),
    ("\\sin x", "\\cos(\\frac{\\pi}{2}-x)")]
coefficients = st.lists(st.integers(-9, 9), min_size=len(ATOMS), max_size=len(ATOMS))
pieces = st.sampled_from([*r"""\frac { } ( ) [ ] ^ _ \sqrt 1 23 0 x y n \pi e i + - * / , = < \le
\infty \cup \{ \} | ! % ^\circ \text{ \text{\ cm} \pm & \\ \sin \begin{pmatrix} \end{pmatrix} \log_
\binom \lfloor \rfloor 99999 e5 . : and or \$ \left( \right) \in \mathbb{R} ² ½ \overline{3} '
\setminus f( \cdot \ge \ne \approx \emptyset""".split(), " ", "\x00", "\ud800"])
texts = st.text(max_size=40) | st.lists(pieces, max_size=14).map("".join)


@given(numbers, numbers, spellings, spellings, units)
def test_numbers_are_equal_only_by_value(x, y, one, other, unit):
    def spelled(x, spelling):
        return spelling.format(n=x.numerator, d=x.denominator)
    for z in (x, y):
        assert is_equivalent(spelled(x, one), spelled(z, other)) is (x == z)
        assert is_equivalent(spelled(x, unit), spelled(z, unit)) is (x == z)
    assert is_equivalent(spelled(x, one), spelled(x, unit))


@given(coefficients, st.sampled_from(range(len(ATOMS))), st.integers(1, 3))
def test_formulas_are_equal_only_by_value(numbers, i, change):
    def formula(numbers, spelling):
        terms = [f"{n} {{{atom[spelling]}}}" for n, atom in zip(numbers, ATOMS, strict=True) if n]
        return " + ".join(terms).replace("+ -", "- ") or "0"
    other = [n + change * (k == i) for k, n in enumerate(numbers)]
    assert is_equivalent(formula(numbers, 0), formula(numbers, 1))
    assert not is_equivalent(formula(numbers, 0), formula(other, 1))


@given(st.lists(numbers.map(str), min_size=2, max_size=5, unique=True), st.randoms())
def test_order_matters_in_tuples_only(items, rng):
    text, shuffled = ", ".join(items), rng.sample(items, len(items))
    assert is_equivalent(" \\text{ and } ".join(shuffled), text)
    assert is_equivalent("\\{" + ", ".join(shuffled) + "\\}", text)
    assert is_equivalent(f"({', '.join(shuffled)})", f"({text})") == (shuffled == items)
    for other in ([*items[1:], "10001"], [*items, items[0]], items[1:]):
        assert not is_equivalent(text, ", ".join(other))


@given(texts, texts)
def test_any_text(a, b):
    """Nothing is raised, and the order of two answers doesn't matter."""
    assert is_equivalent(a, a) is bool(a.strip())
    assert is_equivalent(a, b) is is_equivalent(b, a)


ENTRIES = "\\\\".join("&".join(f"x_{{{i}}}+{j}y" for j in range(50)) for i in range(50))
HOSTILE = [
    "9^{9^{9^9}}", "e^{e^{e^{e^{e^e}}}}", "1000000!", "(10^{100})!", "9!!!!!!", r"\frac{1}{0}",
    r"\binom{10^{10}}{10^9}", r"\sin(10^{10^{10}})", "(x+1)^{1000000}", r"(1+\sqrt2)^{1000000}",
    "x!" * 200, "x(" * 40 + "y+1" + ")" * 40,
    r"\sqrt[999999999]{2}", "{" * 10_000 + "1" + "}" * 10_000, "(" * 5000, "|" * 5000,
    r"\frac{1}{" * 300 + "2" + "}" * 300, r"\text{" * 5000, r"\boxed{" * 2000, "9" * 15_000,
    "a+" * 500_000 + "1", "1e999999999", "1e4999", "1" + ",000" * 3000, "\\" * 15_000, "\x00\x001",
    r"0.\overline{" + "7" * 4000, " " * 15_000 + "2", ",".join(map(str, range(4000))), "e " * 9000,
    r"\begin{pmatrix}" + ENTRIES + r"\end{pmatrix}", "+".join(["(x+1/3)^{400}"] * 600),
    r"\{" + ",".join(rf"\sqrt{{{i}}}" for i in range(1500)) + r"\}", "\ud800\udfff",
    r"\cup".join(f"({i},{i + 1})" for i in range(1500)), "(" + ",".join([r"\pm1"] * 40) + ")"]
CODE = ["__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__()",
        "exec(\"open('owned','w')\")", "eval(compile('1','','eval'))", "lambda: 0", "Symbol('x')",
        "f'{1}'", "x;import os", "{{7*7}}", "\\input{/etc/passwd}"]


@pytest.mark.parametrize("text", HOSTILE + CODE)
def test_hostile_text_is_just_wrong(text):
    """No comparison raises an error or takes long."""
    start = time.process_time()
    assert not is_equivalent(text, "1") and not is_equivalent("1", text)
    assert reward.math(f"\\boxed{{{text}}}", "1") == reward.gsm8k(f"#### {text}", "17") == 0.0
    assert is_equivalent(text, text + "1") is is_equivalent(text + "1", text)
    assert time.process_time() - start < 6 * reward.answer_limit


def test_nothing_is_run_as_code(tmp_path):
    """Python reports every eval, import, opened file and new process to an audit hook. Grading
    causes none of them. Grading processes don't load torch, which would take seconds."""
    texts = [*CODE, "x = 1", "\\sin x", "1, 2", "(0, 1)", "5!", "2^x"]
    done = subprocess.run([sys.executable, "-c", rf"""
import reward, sys
reward.is_equivalent(r"\sin x", r"\cos x + \binom{{n}}{{2}}! + \arctan y")  # late imports of mpmath
seen = set()
sys.addaudithook(lambda event, args: seen.add(event.split(".")[0]))
for a in {texts}:
    for b in {texts}:
        reward.math("\\boxed{{" + a + "}}", b)
        reward.gsm8k("#### " + a, b)
print("torch" in sys.modules, *seen)
"""], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    loads_torch, *seen = done.stdout.split()
    assert loads_torch == "False" and not os.listdir(tmp_path) and not {*seen} & {
        "exec", "compile", "import", "open", "os", "subprocess", "socket", "ctypes", "code"}


# ---- grading a batch -----------------------------------------------------------------------------

@pytest.fixture
def task(tmp_path):
    """A user's task file. Its reward is the value of the response, which is a Python expression."""
    path = tmp_path / "mine.py"
    path.write_text("import time\ndef rows(split):\n    return []\n"
                    "def reward(response, answer, finished):\n"
                    "    print('This is no reply.')\n    return eval(response)\n")
    return str(path)


def grade(task, *texts):
    return reward.grade([{"task": task, "answer": "5"}] * len(texts), texts, [False] * len(texts))


def processes(parent=None):
    """The ids of all grading processes, or of those that `parent` has started."""
    ps = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True)
    lines = [line.split() for line in ps.stdout.splitlines() if reward.__file__ in line]
    return {int(pid) for pid, ppid, *_ in lines if parent in (None, int(ppid))}


def wait_for_the_end(pids):
    deadline = time.time() + 30
    while pids & processes():
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_batch_is_graded_in_its_order():
    """The grades are those of the reward functions, also for truncated responses."""
    equal = table(EQUAL, True)
    rows = [{"task": task, "answer": a} for a, *_ in equal for task in ("math", "arithmetic")]
    texts = [f"#### {b}\n\\boxed{{{b}}} \ud800" for _, b, _ in equal for _ in range(2)]
    truncated = [i % 3 == 0 for i in range(len(rows))]
    graded = reward.grade(rows, texts, truncated)
    assert graded.rewards == [
        load_task(row["task"]).reward(text, row["answer"], not is_truncated)
        for row, text, is_truncated in zip(rows, texts, truncated, strict=True)]
    assert graded.rewards[::2] == [float(not is_truncated) for is_truncated in truncated[::2]]
    assert sum(graded.rewards[3::6]) > 10  # truncated sums
    assert not any(graded.timed_out) and reward.grade([], [], []) == ([], [])


def test_a_users_reward_is_a_number_from_0_to_1(task):
    right = {"0": 0.0, "1": 1.0, "-0.0": 0.0, "0.25": 0.25, "True": 1.0,
             "__import__('numpy').float32(0.5)": 0.5}
    assert grade(task, *right).rewards == [*right.values()]
    for response, message in {
            "1.0000001": "returned 1.0000001, ", "-0.1": "returned -0.1, ", "'1'": "returned '1', ",
            "float('nan')": "returned nan, ", "None": "returned None, ",
            "[][1]": "raised IndexError: list index out of range (<string>, line 1)"}.items():
        with pytest.raises(ValueError) as e:
            grade(task, "1", response)
        assert f"{task} {message}" in str(e.value) and "\n" not in str(e.value)


def test_what_exceeds_a_limit_earns_0(task, capsys):
    """The limits are 2 seconds, without the time to load the task, and 2 GiB. The pool goes on."""
    graded = grade(task, "time.sleep(1.4) or 1", "len(bytes(1 << 30)) > 0", "9 ** 9 ** 9",
                   "time.sleep(2.6) or 1", "len(bytes(2 << 30)) > 0", "1", "1", "1")
    assert graded.rewards == [1, 1, 0, 0, 0, 1, 1, 1]
    assert graded.timed_out == [r == 0 for r in graded.rewards]
    assert "3 of 8 answers took over 2 s" in capsys.readouterr().out
    slow = Path(task).with_name("slow.py")
    slow.write_text("import time\ntime.sleep(2.2)\n" + Path(task).read_text())
    assert grade(str(slow), "1", "1").rewards == [1.0, 1.0]


def test_a_killed_grading_process_is_replaced(task):
    """Ctrl-C and SIGTERM don't end one."""
    grade(task, *["1"] * 20)
    pids = processes(os.getpid())
    assert 1 <= len(pids) <= 16 and all(os.getsid(pid) == pid for pid in pids)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_for_the_end(pids)
        graded = grade(task, *["1"] * 20)
        assert graded.rewards == [1.0] * 20 and not any(graded.timed_out)
        assert pids.isdisjoint(processes(os.getpid())) == (number == signal.SIGKILL)


def test_no_process_is_left_behind(task, tmp_path):
    """A stage is killed while one grading process is idle and the other one hangs: both end."""
    stage = subprocess.Popen([sys.executable, "-c", f"""
import reward
rows = [{{"task": {task!r}, "answer": "5"}}] * 99
print(reward.grade(rows, ["1"] * 99, [False] * 99).rewards[0], flush=True)
reward.grade(rows, ["9 ** 9 ** 9"] + ["1"] * 98, [False] * 99)
"""], cwd=tmp_path, stdout=subprocess.PIPE)
    assert stage.stdout.readline() == b"1.0\n"
    time.sleep(0.3)
    pids = processes(stage.pid)
    stage.kill()
    stage.wait()
    assert pids
    wait_for_the_end(pids)


def test_ranks_grade_a_batch_together(task, monkeypatch):
    """Each rank grades a part and gets all grades in the batch's order, or an error of any rank."""
    def graded_on(rank, texts, all_gather):
        for name, value in (("rank", rank), ("world_size", 3), ("all_gather", all_gather)):
            monkeypatch.setattr(lib.distributed, name, value)
        responses = [SimpleNamespace(text=text, truncated=False) for text in texts]
        return reward.start_grading([{"task": task, "answer": "5"}] * len(texts), responses)()

    texts = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    parts = [grade(task, *texts[rank::3]) for rank in range(3)]
    for rank in range(3):
        mine = []
        graded = graded_on(rank, texts, lambda part, mine=mine: mine.append(part) or parts)
        assert graded.rewards == [*map(float, texts)] and mine == [parts[rank]]
    with pytest.raises(ValueError, match="all get: the reward of task .* raised ZeroDivisionError"):
        graded_on(1, ["0", "1 / 0"], lambda part: [f"all get: {part}"] * 3)


@pytest.mark.parametrize("source, message", [
    (None, "it can be arithmetic, countdown, facts, gsm8k, instructions, math, or"),
    ("1 / 0\n", "ZeroDivisionError: division by zero (mine.py, line 1)"),
    ("def rows(split)\n", "SyntaxError: "), ("rows = 1\n", "rows(split)"),
    ("def rows(split):\n    return []\n", "reward(response, answer, finished)")])
def test_task_files_that_are_wrong(source, message, tmp_path):
    """The error is one line, which names the file."""
    path = tmp_path / "mine.py"
    if source:
        path.write_text(source)
    with pytest.raises(ValueError if source else FileNotFoundError) as e:
        load_task(str(path))
    assert str(path) in str(e.value) and message in str(e.value) and "\n" not in str(e.value)


def test_the_fingerprint_covers_all_code_that_grades(task, tmp_path, monkeypatch):
    """It changes with reward.py, lib/{answers,latex}.py and the file of each task in the rows."""
    rows = [{"task": "math"}, {"task": task}, {"task": "math"}]
    before = reward.fingerprint(rows)
    assert reward.fingerprint(rows[:0:-1]) == before != reward.fingerprint(rows[:1])
    for module in (reward, lib.answers, lib.latex, load_task("math"), load_task(task)):
        changed = tmp_path / "changed.py"
        changed.write_text(Path(module.__file__).read_text() + "#")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            assert reward.fingerprint(rows) != before
